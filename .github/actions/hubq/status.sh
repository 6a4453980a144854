#!/usr/bin/env bash
# Puts out the manifests below CARDS whose base model moved on, as JSON in one line.
set -euo pipefail

hubq status --cards "$CARDS" --json >"$RUNNER_TEMP/status.json"
moved=$(jq -c '[.cards[] | select(any(.findings[]; .kind == "moved"))]' "$RUNNER_TEMP/status.json")
echo "moved=$moved" >>"$GITHUB_OUTPUT"
