#!/usr/bin/env bash
# Puts hubq on the PATH.
#   HUBQ_VERSION  a version, "installed", or a path or an address that pip takes
#   EXTRAS        extras, separated by commas
#   WHEELS        a folder of wheels: filled where it is empty, the only source where it is not
set -euo pipefail
unset HF_TOKEN HUBQ_PUSH_TOKEN ACTIONS_ID_TOKEN_REQUEST_URL ACTIONS_ID_TOKEN_REQUEST_TOKEN # none of pip's business

WHEELS=${WHEELS:-$RUNNER_TEMP/hubq-wheels}
extras=${EXTRAS:+[$EXTRAS]}
case $HUBQ_VERSION in
  installed) wanted= ;;
  *://*) wanted="hubq$extras @ $HUBQ_VERSION" ;;
  [0-9]*) wanted="hubq$extras==$HUBQ_VERSION" ;;
  *) wanted=$HUBQ_VERSION$extras ;;
esac

mkdir -p "$WHEELS"
if [[ -n $wanted ]]; then
  environment=$RUNNER_TEMP/hubq-environment
  python -m venv --without-pip "$environment"
  if [[ ! -e $WHEELS/version.txt ]]; then
    # torch without CUDA, and llama.cpp for any processor: the jobs of a run may meet different ones
    export PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL-https://download.pytorch.org/whl/cpu}
    export CMAKE_ARGS="${CMAKE_ARGS-} -DGGML_NATIVE=OFF"
    python -m pip wheel -q --wheel-dir "$WHEELS" "$wanted"
  fi
  python -m pip --python "$environment/bin/python" install -q --no-index --find-links "$WHEELS" "hubq$extras"
  export PATH="$environment/bin:$PATH"
  echo "$environment/bin" >>"$GITHUB_PATH"
fi

version=$(hubq --version)
echo "$version"
if [[ ! -e $WHEELS/version.txt ]]; then
  echo "$version" >"$WHEELS/version.txt"
elif [[ $version != "$(<"$WHEELS/version.txt")" ]]; then
  echo "::error::this machine has $version, but the plan is of $(<"$WHEELS/version.txt")"
  exit 1
fi
