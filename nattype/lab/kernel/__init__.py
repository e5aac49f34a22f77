"""NATs made by the Linux kernel: network namespaces, nftables and conntrack."""
