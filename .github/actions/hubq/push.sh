#!/usr/bin/env bash
# Pushes what other jobs made and measured: step by step of STEPS to the repositories TARGETS. Without HUBQ_PUSH_TOKEN
# huggingface_hub gets a token for each push, by the identity of this job, that may write to that one repository.
# The folders of cards that it leaves, one for each format, are gathered in MADE.
set -euo pipefail

read -ra keys <<<"$STEPS"
read -ra repositories <<<"$TARGETS"
for at in "${!keys[@]}"; do
  if [[ -z ${HUBQ_PUSH_TOKEN-} ]]; then
    export HF_OIDC_RESOURCE=${repositories[at]}
  fi
  hubq run-step "$MANIFEST" "${keys[at]}" --work-dir "$WORK" --summary "$GITHUB_STEP_SUMMARY"
done

mkdir -p "$MADE"
for folder in "${MANIFEST%/}" "${MANIFEST%/}-ONNX"; do
  if [[ -d $folder ]]; then
    cp -a "$folder" "$MADE"
  fi
done
