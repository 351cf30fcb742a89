# Sourced by scripts/serve, scripts/worker, scripts/test and scripts/install: finds a Python, makes a
# virtual environment, and installs requirements into it if they have changed.

say() { printf 'lineside: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# Prints the first of $PYTHON, python3.13 ... python3 that is 3.11 to 3.13.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
    if "$candidate" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
      2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "needs Python 3.11, 3.12 or 3.13 with its venv module; found $(python3 --version 2>&1 || echo none)." \
    "Install one (Debian: apt install python3-venv) or name it in PYTHON."
}

# environment FOLDER REQUIREMENTS...: makes the environment hold exactly these requirements.
environment() {
  local folder=$1 python stamp; shift
  python=$(find_python) || exit 1
  stamp=$("$python" --version; cat requirements.txt {convert,tests}/requirements*.txt server/requirements-*.txt)
  if [ -x "$folder/bin/python" ] && [ "$(cat "$folder/installed" 2>/dev/null)" = "$stamp" ]; then
    return
  fi
  say "installing $(printf '%s ' "$@")into $folder (the first time, or the requirements changed)"
  "$python" -m venv --clear "$folder" || fail "could not make the virtual environment $folder."
  local file args=()
  for file in "$@"; do args+=(-r "$file"); done
  # Of the device's packages alone, requirements.lock has the hashes.
  if [ "$*" = requirements.txt ]; then
    "$folder/bin/python" scripts/supply/hashed.py requirements.txt >"$folder/hashed.txt" || exit 1
    args=(--only-binary=:all: --require-hashes -r "$folder/hashed.txt")
  fi
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "${args[@]}" \
    >"$folder/install.log" 2>&1 ||
    fail "could not install the packages: $(grep -E '^ERROR' "$folder/install.log" | tail -n 1)" \
      "Can this machine reach a package index? The output is in $folder/install.log."
  printf '%s\n' "$stamp" >"$folder/installed"
}
