#!/usr/bin/env bash
# Build a recipe and gate on it: what action.yml and the GitLab example run, and .ci/run too.
#
#   DSCONV_RECIPE    a name of `dsconv recipes`, or a TOML file
#   DSCONV_OUTPUT    the folder to write
#   DSCONV_SETTINGS  KEY=VALUE instead of the recipe's, one per line
#   DSCONV           the command, where it is not the one in .venv, which is set up if missing
#
# Ends with dsconv's exit code: 1 when the artifact does not reach the recipe's limits.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dsconv=${DSCONV:-$root/.venv/bin/dsconv}
command -v "$dsconv" >/dev/null || python3 "$root/scripts/setup.py" install

settings=()
while IFS= read -r line; do
    line=${line%$'\r'}
    [ -z "$line" ] || settings+=(--set "$line")
done <<<"${DSCONV_SETTINGS:-}"

messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
code=0
{
    "$dsconv" build "$DSCONV_RECIPE" -o "$DSCONV_OUTPUT" ${settings[@]+"${settings[@]}"} \
        2>&1 1>&3 | tee "$messages" >&2
} 3>&1 || code=$?

# On GitHub: an annotation of the run, and the model card on its page.
if [ -n "${GITHUB_ACTIONS:-}" ]; then
    sed -n 's/%/%25/g; s/^error: /::error title=dsconv::/p' "$messages"
fi
if [ -n "${GITHUB_STEP_SUMMARY:-}" ] && [ "$code" -le 1 ]; then
    # without the front matter, which is for model hubs
    sed '1,/^---$/d' "$DSCONV_OUTPUT/README.md" >>"$GITHUB_STEP_SUMMARY"
fi
exit "$code"
