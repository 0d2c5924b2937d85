#!/usr/bin/env bash
# Gates the losses of the repository in this folder, and compares its HEAD with its base. action.yml
# runs it with its inputs as variables. By hand, after `make .venv/ready` here, in their repository:
#   IMPL=their_package.losses:fused_ce BASE=main ../cross-entropy-bench/.github/guard.sh
# Exit codes: 1 if the gate failed, else those of `python -m benchmarks compare`.
set -euo pipefail
set -f # brackets in a name are no pattern

harness=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
summary=${GITHUB_STEP_SUMMARY:-/dev/null}
PATH=$harness/.venv/bin:$PATH

refuse() {
  echo "$1" | tee -a "$summary" >&2
  exit 2
}

check_flag() { [ "$2" = true ] || [ "$2" = false ] || refuse "$1 is true or false, not $2"; }

losses=()
for name in ${IMPL:-}; do losses+=("--impl=$name"); done
[ ${#losses[@]} -gt 0 ] || refuse "impl names no loss"
losses+=(${LEVEL:+"--level=$LEVEL"})
check_flag gate "${GATE:=true}"
check_flag strict "${STRICT:=false}"

top=$(git rev-parse --show-toplevel) || refuse "$PWD is no git repository"
cd "$top"
if [ -z "${BASE:-}" ]; then
  [ -n "${GITHUB_BASE_REF:-}" ] || refuse "there is no pull request, so the input base is needed"
  BASE=$(git merge-base "origin/$GITHUB_BASE_REF" HEAD) ||
    refuse "HEAD and origin/$GITHUB_BASE_REF have no merge base here: check out with fetch-depth: 0"
fi

folder=$(TMPDIR=${RUNNER_TEMP:-${TMPDIR:-}} mktemp -d -t loss-guard-XXXXXX)
# A job may guard twice, and the name of an artifact is unique in a run.
printf '%s\n' "folder=$folder" "artifact=${folder##*/}" >> "${GITHUB_OUTPUT:-/dev/null}"

# -P: this folder is not on the path unless we put it there. It may have a `benchmarks` of its own.
gated=0
if [ "$GATE" = true ]; then
  PYTHONPATH=$harness:$top/src:$top python -P -m pytest --config-file "$harness/pyproject.toml" \
    --rootdir "$harness" "$harness/tests/gate" -q -p no:cacheprovider --require-all \
    "${losses[@]}" 2>&1 | tee "$folder/gate.txt" || gated=$?
  {
    printf '### Gate\n\n```\n'
    sed '/%\]$/d' "$folder/gate.txt" # without pytest's dots
    printf '```\n\n'
  } >> "$summary"
  [ $gated -le 1 ] || exit 2 # a loss could not be loaded
fi

options=(--out "$folder/pairs.csv" ${MARGIN:+"--margin=$MARGIN"} ${BUDGET:+"--budget=$BUDGET"})
if [ "$STRICT" = true ]; then options+=(--strict); fi
compared=0
PYTHONPATH=$harness python -P -m benchmarks compare --repo . "$BASE" HEAD "${losses[@]}" \
  "${options[@]}" 2>&1 | tee "$folder/compare.txt" || compared=$?
{
  printf '### Comparison\n\n'
  sed '/^measuring: /d' "$folder/compare.txt" # without the progress
} >> "$summary"
[ $gated -eq 0 ] || exit 1
exit $compared
