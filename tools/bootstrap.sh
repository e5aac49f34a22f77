#!/bin/sh
# Installs what a make target needs.
#   bootstrap.sh venv run|dev|interop|fuzz   the virtual environment, with one set of requirements
#   bootstrap.sh lab | interop               system packages: for real NATs, for foreign peers
#   bootstrap.sh bpf                         system packages: for the relay inside the kernel
# As root it installs; as anybody else it prints the one line to run, and the target goes on with
# what there is (the simulated network instead of kernel NATs).  QUIET leaves that line to the
# target, which may have a better one.
set -eu

PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}

say() { printf 'natkit: %s\n' "$*" >&2; }

apt_install() {
    log=$(mktemp)
    say "installing $* ..."
    export DEBIAN_FRONTEND=noninteractive
    # A fresh machine has no package lists, an old one has stale ones: refresh only when needed.
    if ! apt-get install -y --no-install-recommends "$@" >"$log" 2>&1; then
        if ! { apt-get update && apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1; then
            cat "$log" >&2
            rm -f "$log"
            return 1
        fi
    fi
    rm -f "$log"
}

# need WHY COMMAND=PACKAGE...: the packages of the commands (or files) that are missing.
need() {
    why=$1
    shift
    missing=
    for pair in "$@"; do
        case $pair in
        /*) [ -e "${pair%%=*}" ] && continue ;;
        # sbin is not on an ordinary user's PATH, but its programs are there.
        *) PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%=*}" >/dev/null 2>&1 && continue ;;
        esac
        missing="$missing ${pair#*=}"
    done
    [ -n "$missing" ] || return 0
    # shellcheck disable=SC2086  # a list of package names
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        apt_install $missing && return 0
        say "could not install$missing: $why"
    elif [ -z "${QUIET:-}" ]; then
        say "$why: sudo apt-get install -y$missing"
    fi
}

# Where Debian keeps what libnice is reached by.
gst() { echo "/usr/lib/$(uname -m)-linux-gnu/gstreamer-1.0/$1"; }
typelib() { echo "/usr/lib/$(uname -m)-linux-gnu/girepository-1.0/$1.typelib"; }

# Any place of libbpf 1, by the linker's own list, or else where Debian has it.
libbpf() {
    found=$(PATH=$PATH:/usr/sbin:/sbin ldconfig -p 2>/dev/null |
        sed -n 's/.*libbpf\.so\.1 .*=> //p' | head -n 1)
    echo "${found:-/usr/lib/$(uname -m)-linux-gnu/libbpf.so.1}"
}

make_venv() {
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        say "Python 3.11 or newer is needed, $PYTHON is $("$PYTHON" -V 2>&1 || echo missing);" \
            "name another one with: make PYTHON=/path/to/python3"
        exit 1
    fi
    [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -c 'import pip' 2>/dev/null && return 0
    if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
        # Debian and Ubuntu ship the venv module apart from python3.
        package=python$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
            apt_install "$package"
        else
            say "the virtual environment cannot be made; run: sudo apt-get install -y $package"
            exit 1
        fi
    fi
    say "making the virtual environment $VENV ..."
    "$PYTHON" -m venv "$VENV"
}

case ${1:-} in
venv)
    make_venv
    case $2 in
    run) what=. ;;
    dev) what=".[dev]" ;;
    interop) what=".[dev,interop]" ;;
    fuzz) what=".[dev,fuzz]" ;;
    *) say "unknown set of requirements: $2"; exit 2 ;;
    esac
    say "installing natkit ($2) into $VENV ..."
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$what"
    # pystun3's package is called "stun" as natkit's is: it lives apart, on nobody's path.
    [ "$2" != interop ] || "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
        --no-deps --upgrade --target "$VENV/peers" "pystun3>=2"
    touch "$VENV/.$2"
    ;;
lab)
    need "real NATs need nftables and iproute2, going on without; run" nft=nftables ip=iproute2
    need "tests of the relay inside the kernel need ethtool and bpftool; run" \
        ethtool=ethtool bpftool=bpftool
    ;;
bpf)
    [ "$(uname)" = Linux ] || exit 0
    # clang makes the program from C, llvm-strip takes out what debuggers alone read, libbpf loads it.
    need "the relay inside the kernel needs clang and libbpf, going on without; run" \
        clang=clang llvm-strip=llvm /usr/include/bpf/bpf_helpers.h=libbpf-dev \
        /usr/include/linux/bpf.h=linux-libc-dev "$(libbpf)=libbpf1"
    ;;
interop)
    need "real NATs need nftables and iproute2, going on without; run" nft=nftables ip=iproute2
    need "tests of the relay inside the kernel need ethtool and bpftool; run" \
        ethtool=ethtool bpftool=bpftool
    need "some peers are missing, their tests will be skipped; run" \
        turnserver=coturn stun=stun-client openssl=openssl redis-server=redis-server haproxy=haproxy \
        tshark=tshark tcpdump=tcpdump \
        chromium=chromium go=golang-go \
        /usr/share/gocode/src/github.com/pion/turn/v2=golang-github-pion-turn.v2-dev \
        /usr/share/gocode/src/github.com/pion/ice/v2=golang-github-pion-ice.v2-dev \
        "$(gst libgstnice.so)=gstreamer1.0-nice" "$(gst libgstapp.so)=gstreamer1.0-plugins-base" \
        "$(typelib Nice-0.1)=gir1.2-nice-0.1" "$(typelib Gst-1.0)=gir1.2-gstreamer-1.0" \
        "$(typelib GstApp-1.0)=gir1.2-gst-plugins-base-1.0" \
        /usr/lib/python3/dist-packages/gi=python3-gi
    # Not every distribution has a package of it, which must not keep the others away.
    need "Firefox is missing, its tests will be skipped; run" firefox-esr=firefox-esr
    ;;
*)
    say "usage: bootstrap.sh venv run|dev|interop|fuzz | lab | interop | bpf"
    exit 2
    ;;
esac
