# Shared by the scripts beside it; sourced, never run.
# shellcheck shell=bash

# Versions that are known to build with the pinned toolchain.
NEXTEST_VERSION=0.9.143
DENY_VERSION=0.20.2
LLVM_COV_VERSION=0.9.1

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Where rustup may not download, the pinned version can still be there under its channel's name.
if ! cargo --version >/dev/null 2>&1; then
  pinned=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
  if rustc +stable --version 2>/dev/null | grep -qF "rustc $pinned "; then
    export RUSTUP_TOOLCHAIN=stable
  else
    echo "Rust $pinned is needed: rustup toolchain install $pinned -c rustfmt -c clippy" >&2
    exit 2
  fi
fi

# install_tool NAME VERSION: builds a cargo tool unless some version of it is there. Not optimised:
# a fresh machine waits for the build, and the tool itself has little to compute.
install_tool() {
  command -v "$1" >/dev/null 2>&1 && return
  echo "building $1 $2, which is not installed yet"
  CARGO_PROFILE_DEV_DEBUG=false cargo install --locked --quiet --debug "$1@$2"
}

failed=()
times=()

# part NAME COMMAND...: runs one part, says how long it took, and remembers whether it failed.
# Bash ignores `set -e` in a command that is tested, so a part joins its steps with `&&`.
part() {
  local name=$1 began=$SECONDS verdict=ok
  shift
  printf '\n=== %s\n' "$name"
  if ! "$@"; then
    verdict=FAILED
    failed+=("$name")
  fi
  times+=("$(printf '%-10s %5d s  %s' "$name" $((SECONDS - began)) "$verdict")")
}

# finish: prints what each part took; the exit code says whether all of them passed.
finish() {
  printf '\n=== Parts\n'
  printf '%s\n' "${times[@]}"
  printf '%-10s %5d s\n' total "$SECONDS"
  if ((${#failed[@]})); then
    printf 'Failed: %s\n' "${failed[*]}" >&2
    return 1
  fi
}
