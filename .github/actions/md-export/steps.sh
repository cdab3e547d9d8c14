#!/usr/bin/env bash
# The steps of action.yml, one function each. All they need comes in environment variables, so that no input is ever
# read as shell.
set -euo pipefail

readonly PARITY_FAILED=3

# Names that other steps use. In: TARGET, RECIPE, OUTPUT, BRANCH.
names() {
  local recipe=${RECIPE:-$TARGET-fp16}
  local stem
  stem=$(basename "$recipe" .toml)
  # GitHub shows an annotation at a file of the repository: the recipe, else the workflow that asked.
  local shown_at=$recipe
  if [[ ! -f $recipe ]]; then
    shown_at=${GITHUB_WORKFLOW_REF%@*}
    shown_at=${shown_at#"$GITHUB_REPOSITORY"/}
  fi
  {
    echo "recipe=$recipe"
    echo "name=$stem"
    echo "output=$OUTPUT"
    echo "annotate=$shown_at"
    echo "baseline-key=md-export-baseline-$stem-$BRANCH"
    echo "requirements=$(sha256sum "$(project)/pyproject.toml" | cut -c1-16)"
  } >>"$GITHUB_OUTPUT"
}

# The tool as it lies beside this action, in an environment of its own. In: TARGET, PYTHON.
install() {
  local venv=$RUNNER_TEMP/md-export
  "$PYTHON" -m venv "$venv"
  "$venv/bin/pip" install --quiet "$(project)[$TARGET,report]"
  echo "$venv/bin" >>"$GITHUB_PATH"
}

# Artifacts that fall short are kept under another name; what follows tells why. In: TARGET, RECIPE, CHECKPOINT, OUTPUT, NAME.
export_artifacts() {
  local made=$OUTPUT/$NAME status=0
  local arguments=("$TARGET")
  [[ -z $CHECKPOINT ]] || arguments+=("$CHECKPOINT")
  md-export "${arguments[@]}" --recipe "$RECIPE" --output "$made" || status=$?
  if ((status == PARITY_FAILED)); then
    made=$made.rejected
  elif ((status != 0)); then
    exit "$status"
  fi
  echo "folder=$made" >>"$GITHUB_OUTPUT"
}

# Fails where an artifact falls short. In: FOLDER, CHECKPOINT, OUTPUT, ANNOTATE.
report() {
  local explain=()
  [[ -z $CHECKPOINT ]] || explain+=(--checkpoint "$CHECKPOINT")
  md-export report "$FOLDER" "${explain[@]}" --output "$OUTPUT/report.html" --junit "$OUTPUT/report.xml" \
    --markdown "$OUTPUT/report.md" --json "$OUTPUT/report.json" --annotate "$ANNOTATE"
}

# Fails past the recipe's budget; a baseline that cannot be compared is a warning. In: BASELINE, FOLDER, OUTPUT, ANNOTATE.
compare() {
  local baseline=${BASELINE:-$OUTPUT/baseline} status=0
  if [[ ! -d $baseline ]]; then
    echo "::notice title=md-export compare::no older export of the base branch is in the cache; nothing to compare with"
    return
  fi
  md-export compare "$baseline" "$FOLDER" --junit "$OUTPUT/compare.xml" --markdown "$OUTPUT/compare.md" \
    --json "$OUTPUT/compare.json" --annotate "$ANNOTATE" || status=$?
  if ((status == PARITY_FAILED)); then
    exit "$status"
  elif ((status != 0)); then
    echo "::warning title=md-export compare::the older export could not be compared; the log of this step says why"
  fi
}

# What there is of the verdicts, on the run's own page. In: OUTPUT.
summary() {
  mkdir -p "$OUTPUT"
  local file
  for file in "$OUTPUT/compare.md" "$OUTPUT/report.md"; do
    [[ ! -f $file ]] || cat "$file"
  done >"$OUTPUT/summary.md"
  cat "$OUTPUT/summary.md" >>"$GITHUB_STEP_SUMMARY"
}

# The export that later pull requests are compared with. In: FOLDER, OUTPUT.
keep() {
  rm -rf "$OUTPUT/baseline"
  cp -R "$FOLDER" "$OUTPUT/baseline"
}

# The root of this repository, wherever GitHub has put it.
project() {
  cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd
}

case "$1" in
  names | install | report | compare | summary | keep) "$1" ;;
  export) export_artifacts ;;
  *) echo "no step $1" >&2 && exit 2 ;;
esac
