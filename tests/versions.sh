#!/usr/bin/env bash
# The tests under every supported Python and torch: tests/versions.sh [PYTHONS [TORCHES [PYTEST ARGUMENTS...]]]
#   tests/versions.sh                                   3.11, 3.12 and 3.13, each with torch 2.11, 2.12 and 2.13
#   tests/versions.sh "3.13" "2.13.0" tests/msa_base    one of them, some tests
# Environments stay in .versions/, so that a second call installs nothing. A Python that is not there is said and counts
# as a failure. TORCH_INDEX names an index of pip with smaller builds, such as https://download.pytorch.org/whl/cpu.
set -uo pipefail
cd "$(dirname "$0")/.."
pythons=${1:-3.11 3.12 3.13}
torches=${2:-2.11.0 2.12.1 2.13.0}
shift $(($# < 2 ? $# : 2))
failed=0
mkdir -p .versions
for version in $pythons; do
  # the first that runs of a plain name, which may be a shim of pyenv for one that is not chosen, and pyenv's own
  python=""
  for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
    [ -n "$python" ] || ! "$candidate" -c "" 2> /dev/null || python=$candidate
  done
  if [ -z "$python" ]; then
    echo "python $version: not on this machine"
    failed=1
    continue
  fi
  for torch in $torches; do
    home=".versions/python$version-torch$torch"
    # the pins without torch and what it pins itself; triton 3.6, which torch 2.11 pins, interprets with older numpy alone
    sed -E '/^(torch|triton|nvidia-[a-z0-9-]*|cuda-[a-z-]*)==/d' constraints.txt > .versions/constraints.txt
    [[ $torch != 2.11.* ]] || sed -i 's/^numpy==.*/numpy<2.4/' .versions/constraints.txt
    if [ ! -e "$home/ready" ]; then
      "$python" -m venv --clear "$home" \
        && "$home/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==$torch" \
        && "$home/bin/pip" install --quiet --constraint .versions/constraints.txt "torch==$torch" --editable '.[suite,dev,peers]' \
        && touch "$home/ready" || {
        echo "python $version, torch $torch: could not be installed"
        failed=1
        continue
      }
    fi
    "$home/bin/python" -m pytest -p no:cacheprovider "$@" && echo "python $version, torch $torch: passed" || {
      echo "python $version, torch $torch: FAILED"
      failed=1
    }
  done
done
exit $failed
