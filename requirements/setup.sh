#!/usr/bin/env bash
# Makes the folder VENV with the exact pins, for `make setup`; does nothing where it was made of them.
# Contents decide, not time stamps, and nothing is removed without a word.
set -euo pipefail

fail() {
    echo "error: $1" >&2
    exit 2
}

case "$TORCH" in default | system) ;; *) fail "TORCH=$TORCH is unknown: choose default or system" ;; esac
stamp=$VENV/.installed
pins=$(cat requirements/py311.txt requirements/py312.txt | cksum)
wanted="TORCH=$TORCH torch==$TORCH_VERSION triton==$TRITON_VERSION pins $pins"
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

if [ -e "$VENV" ]; then
    compgen -G "$VENV/.installed*" >/dev/null ||
        fail "$VENV is there, and make did not make it: remove it, or give VENV=another folder"
    case "$DRY_RUN" in
    "" | 0) echo "$VENV was made of other pins than requirements/ has, or not to its end: making it anew" >&2 ;;
    *)
        echo "note: $VENV was made of other pins than requirements/ has (make setup makes it anew)" >&2
        exit 0
        ;;
    esac
fi

# The first interpreter that runs and is 3.11 or 3.12.
candidates=(python3 python3.11 python3.12 python)
[ -z "$PYTHON" ] || candidates=("$PYTHON")
for python in "${candidates[@]}" ""; do
    [ -n "$python" ] || fail "no Python 3.11 or 3.12 found: install one, or give PYTHON=/path/to/python"
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && break
done

rm -rf "$VENV"
site=()
[ "$TORCH" = default ] || site=(--system-site-packages)
"$python" -m venv "${site[@]}" "$VENV"
echo unfinished >"$stamp"
bin=$VENV/bin/python
version=$("$bin" -c 'import sys; print("%d%d" % sys.version_info[:2])')
"$bin" -m pip install -q --require-hashes --no-deps -r "requirements/py$version.txt"
if [ "$TORCH" = default ]; then
    "$bin" -m pip install -q "torch==$TORCH_VERSION" "triton==$TRITON_VERSION ; sys_platform == \"linux\""
fi
"$bin" -c 'import torch, fairseq; print("installed: torch", torch.__version__, "fairseq", fairseq.__version__)' 2>/dev/null ||
    fail "torch or fairseq does not import: run $bin -c 'import torch, fairseq' to see why"
echo "$wanted" >"$stamp"
