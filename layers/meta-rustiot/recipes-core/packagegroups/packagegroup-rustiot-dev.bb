SUMMARY = "What the development image has besides"
DESCRIPTION = "A shell that people like, and tools to look at a running device."
HOMEPAGE = "https://rustiot.example"

inherit packagegroup

RDEPENDS:${PN} = " \
    bash \
    e2fsprogs \
    iproute2 \
    iputils-ping \
    less \
    openssh-sftp-server \
    procps \
    strace \
    systemd-analyze \
    util-linux \
"
