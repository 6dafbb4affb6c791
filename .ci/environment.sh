# shellcheck shell=bash
# Sourced by run-demo.sh and run-tests.sh: finds a Python, makes a virtual environment, builds and installs the package.
# Expects $root, the project's folder, and $work, a temporary folder that the caller removes.

: "${root:?the projects folder}" "${work:?a temporary folder}"
unset PYTHONPATH PYTHONHOME

readonly SOURCES=(pyproject.toml README.md LICENSE quantlab calibrators datasets reports)

heading() {
    printf '\n== %s\n' "$*"
}

# Exit code 4, as in quantlab itself: something that the machine should have is missing.
fail() {
    printf '\nerror: %s\n' "$1" >&2
    shift
    if (($#)); then printf '  %s\n' "$@" >&2; fi
    exit 4
}

suits() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local name
    if [[ -n ${PYTHON:-} ]]; then
        suits "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.11 or later"
        command -v "$PYTHON"
        return
    fi
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        if suits "$name"; then
            command -v "$name"
            return
        fi
    done
    fail "quantlab needs Python 3.11 or later" \
        "got:      $(python3 --version 2>&1 || echo 'no python3')" \
        "expected: python3, or python3.11 to python3.14, on the PATH" \
        "try:      apt-get install python3, or PYTHON=/path/to/python3.12 bash ${0##*/}"
}

# Debian and Ubuntu ship Python without what makes virtual environments.
ensure_venv() {
    local python=$1 package
    local -a as_root=()
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then return; fi
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [[ $(id -u) -ne 0 ]]; then as_root=(sudo -n); fi
    if ! command -v apt-get >/dev/null || ! "${as_root[@]}" true 2>/dev/null; then
        fail "$python cannot make virtual environments: its module ensurepip is missing" \
            "try:      sudo apt-get install $package, then run this again"
    fi
    heading "Installing $package, which this Python needs to make virtual environments"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package"
}

# make_env FOLDER: a working virtual environment there; an existing one is used again.
make_env() {
    local env=$1 python
    if suits "$env/bin/python" && "$env/bin/python" -m pip --version >/dev/null 2>&1; then return; fi
    python=$(find_python)
    ensure_venv "$python"
    heading "Making the environment ${env##*/} with $("$python" --version)"
    "$python" -m venv --clear "$env"
    printf '*\n' >"$env/.gitignore"
}

sources_hash() {
    (
        cd "$root" || exit
        find "${SOURCES[@]}" -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum
    )
}

# install_package FOLDER [EXTRAS]: the package, built into a wheel and installed as its users would; nothing if the
# environment has it already, made from the same sources.
install_package() {
    local env=$1 extras=${2:-} stamp wheel
    stamp="$(sources_hash) $extras"
    if [[ $(cat "$env/.quantlab-installed" 2>/dev/null) == "$stamp" ]]; then return; fi
    heading "Installing quantlab${extras} and what it needs into ${env##*/}"
    # Built from a copy: leftovers of earlier builds never get into the wheel, and the project's folder stays clean.
    mkdir -p "$work/source" "$work/wheel"
    (cd "$root" && cp -R "${SOURCES[@]}" "$work/source/")
    find "$work/source" -name __pycache__ -type d -prune -exec rm -rf {} +
    "$env/bin/python" -m pip wheel --disable-pip-version-check --no-deps --wheel-dir "$work/wheel" "$work/source"
    wheel=$(find "$work/wheel" -name 'quantlab-*.whl')
    rm -f "$env/.quantlab-installed"
    # First without dependencies and by force: pip would keep an older build of the same version.
    "$env/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --force-reinstall "$wheel"
    "$env/bin/python" -m pip install --disable-pip-version-check --progress-bar off "$wheel$extras"
    printf '%s\n' "$stamp" >"$env/.quantlab-installed"
}
