#!/usr/bin/env bash
# Installs quantlab into .venv and runs the whole chain on bundled models and images, in the folder quantlab-demo.
# Needs Python 3.11 or later; PYTHON=... names another one than python3. The exit code is the gate's verdict.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
# shellcheck source=.ci/environment.sh
source "$root/.ci/environment.sh"

env=$root/.venv
make_env "$env"
install_package "$env"

cd "$root"
heading "Demo: calibrate, build, compare and gate (folder quantlab-demo)"
code=0
"$env/bin/python" -P -m quantlab demo --run quantlab-demo || code=$?
printf '\nTo have the command quantlab in this shell: source %q\n' "$env/bin/activate"
exit "$code"
