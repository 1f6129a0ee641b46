# Sourced by the scripts beside it: finds a fitting Python, makes .venv once, installs with constraints.txt.
# Usage: . scripts/_venv.sh; joulegraph_venv "EXTRAS"   (EXTRAS e.g. "dev,rapl", may be empty)
# JOULEGRAPH_PYTHON names the interpreter to use; JOULEGRAPH_VENV another place for the environment.

say() { printf '%s\n' "$*" >&2; }

fitting_python() {
    for candidate in "${JOULEGRAPH_PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
        [ -n "$candidate" ] || continue
        "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null &&
            { command -v "$candidate"; return 0; }
    done
    say "joulegraph needs Python 3.11 to 3.14 and found none; install one (Debian, Ubuntu: apt-get install python3 python3-venv)" \
        "or name it in JOULEGRAPH_PYTHON"
    exit 2
}

joulegraph_venv() {
    extras=$1
    venv=${JOULEGRAPH_VENV:-.venv}
    python=$(fitting_python) || exit 2
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        say "$python lacks ensurepip, so no virtual environment can be made; install python$version-venv" \
            "(Debian, Ubuntu: apt-get install python$version-venv) and run this again"
        exit 2
    fi
    stamp="$venv/.installed-$(printf '%s' "$extras" | tr ',' '-')"
    if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ]; then
        say "setting up $venv with $python (once) ..."
        [ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || exit 2
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt \
            -e ".${extras:+[$extras]}" >&2 || { say "installing the dependencies failed; the lines above say why"; exit 2; }
        touch "$stamp"
    fi
    PATH="$PWD/$venv/bin:$PATH"
    case $venv in /*) PATH="$venv/bin:$PATH" ;; esac
    export PATH
}
