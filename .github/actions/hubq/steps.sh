#!/usr/bin/env bash
# Does STEPS of the release of MANIFEST in the store WORK, and gathers in MADE what other jobs need of them.
set -euo pipefail

read -ra keys <<<"$STEPS"
hubq run-step "$MANIFEST" "${keys[@]}" --work-dir "$WORK" --summary "$GITHUB_STEP_SUMMARY"

mkdir -p "$MADE"
cd "$WORK"
for key in "${keys[@]}"; do
  jq -r --arg self "steps/$key.json" '$self, .entries[]' "steps/$key.json" | xargs -d '\n' cp -al --parents -t "$MADE"
done
