#!/bin/sh
# The container's first program: kevip, with the container's arguments and environment. On a network of its own nobody would
# hear a daemon: that is refused here, where the signs of it are certain. All else kevip's own preflight says.
set -eu

# Whether this container surely has a network of its own.
isolated() {
    # The kubelet's first line in it ends with "(host network)." if the pod has the host's.
    ! grep -qx '# Kubernetes-managed hosts file\.' /etc/hosts || return 0
    # Docker and podman name a container after the first 12 digits of its id, unless it has the host's network, and mount
    # its /etc/hosts from a folder named after the id.
    read -r name </proc/sys/kernel/hostname
    grep -qE "/${name}[0-9a-f]{52}/.* /etc/hosts " /proc/self/mountinfo || return 1
    # One with an address of the hosts' network itself is a host among hosts.
    ! ip -details link | grep -qE '^ +(macvlan|ipvlan) '
}

case "${1:--} $* " in
    [!-]* | *" --help "* | *" -h "* | *" --version "*) ;; # a command, which needs no network
    *)
        if isolated; then
            echo "kevip: this container has a network of its own: run it with --network host (Docker) or" \
                "hostNetwork: true in the pod's spec (Kubernetes)" >&2
            exit 3
        fi
        ;;
esac
exec kevip "$@"
