#!/usr/bin/env bash
# Installs quantlab with all that its checks need into .venv-tests, and runs every check; stops at the first that fails.
# Arguments go to pytest, which then runs alone and without the floor on coverage: bash run-tests.sh -k tango
# Needs Python 3.11 or later; PYTHON=... names another one than python3.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
# shellcheck source=.ci/environment.sh
source "$root/.ci/environment.sh"

readonly COVERAGE_FLOOR=90

env=$root/.venv-tests
make_env "$env"
install_package "$env" '[dev,notebooks]'
# Keeps the project's folder off the module path, in subprocesses too: what is tested is what was installed.
export PYTHONSAFEPATH=1
python=$env/bin/python

cd "$root"
if (($#)); then
    heading "pytest $*"
    "$python" -m pytest "$@"
    exit
fi

heading "ruff check"
"$python" -m ruff check .

heading "ruff format"
"$python" -m ruff format --check .

if command -v shellcheck >/dev/null; then
    heading "shellcheck"
    shellcheck -x run-demo.sh run-tests.sh .ci/run .ci/environment.sh
fi

# These two look at the installed package, from an empty folder: neither follows the mapping of an editable install.
mkdir "$work/empty"
heading "mypy --strict"
(cd "$work/empty" && "$python" -m mypy --config-file "$root/pyproject.toml" --strict -p quantlab)

heading "import-linter"
(
    cd "$work/empty"
    "$python" -c 'from importlinter.cli import lint_imports_command as main; main()' \
        --config "$root/pyproject.toml" --no-cache
)

heading "pytest, notebooks included"
"$python" -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered --cov-fail-under="$COVERAGE_FLOOR"

heading "All checks passed"
