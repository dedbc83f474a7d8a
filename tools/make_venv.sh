#!/bin/sh
# Create a virtual environment with a requirements file and this checkout, or update it.
#
#     tools/make_venv.sh FOLDER REQUIREMENTS PYTHON [PYTHON ...]
#
# Uses the first PYTHON that is 3.10 to 3.13.
set -eu
cd "$(dirname "$0")/.."
folder=$1
requirements=$2
shift 2

usable='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'
python=$folder/bin/python

if ! "$python" -c "$usable" 2>/dev/null; then
    for candidate in "$@"; do
        if "$candidate" -c "$usable" 2>/dev/null; then base=$candidate; break; fi
    done
    if [ -z "${base:-}" ]; then
        echo "no Python 3.10 to 3.13 among: $*" >&2
        echo "install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2
        exit 1
    fi
    echo "creating $folder with $("$base" --version)"
    if ! "$base" -m venv --clear "$folder"; then
        echo "$base cannot create a virtual environment; on Debian: apt install python3-venv" >&2
        exit 1
    fi
fi

# uv installs in parallel: half a minute instead of several.
if "$python" -m pip install --quiet uv; then
    # As pip does unasked: importing torch takes half the time.
    install="$python -m uv pip install --quiet --compile-bytecode --python $python"
    uninstall="$python -m uv pip uninstall --quiet --python $python"
else
    echo "uv cannot be installed here; continuing with pip, which is slower" >&2
    install="$python -m pip install --quiet"
    uninstall="$python -m pip uninstall --quiet --yes"
fi
echo "installing $requirements into $folder"
$install -r "$requirements"
$install --no-deps -r requirements/openmmlab.txt
$install --no-deps --no-build-isolation -e .

# opencv-python draws windows and needs libGL, which servers often lack.
if ! "$python" -c 'import cv2' 2>/dev/null; then
    opencv=$("$python" -c "from importlib.metadata import version; print(version('opencv-python'))")
    echo "no libGL: replacing opencv-python by opencv-python-headless (no --show)"
    $uninstall opencv-python
    $install "opencv-python-headless==$opencv"
fi
