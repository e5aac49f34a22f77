/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What the program in the kernel and the server in user space share: the layouts of the maps.
 *
 * turn/dataplane/kernel/layouts.py has the same in Python; a test compares the two, field by field.
 * All fields are in host order unless they are of a __be type; there is no implicit padding.
 */
#ifndef NATKIT_RELAY_H
#define NATKIT_RELAY_H

#include <linux/bpf.h>
#include <linux/types.h>

/* Octets of an address; that of IPv4 is written as ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2). */
#define HOST 16

/* How a packet is found: the transport addresses at this end and at the other, and the channel. */
struct path_key {
	__u8 local[HOST];
	__u8 remote[HOST];
	__be16 local_port;
	__be16 remote_port;
	__be16 channel; /* 0: a packet of a peer */
	__u16 zero;
};

/* One direction of a route: until when, from where to where, and what is asked first. */
struct path {
	__u64 expires; /* CLOCK_MONOTONIC, ns: nothing passes at or after it */
	__u8 source[HOST];
	__u8 destination[HOST];
	__be16 source_port;
	__be16 destination_port;
	__be16 channel;	   /* the header to be written; 0: the header is taken off */
	__u16 mtu;	   /* octets of the longest IP packet to there; a longer one is passed up */
	__u32 ifindex;	   /* of the interface that leads there */
	__u32 usage;	   /* index in "usage" */
	__u32 buckets[2];  /* indices in "buckets", of the user and of the client; 0: none */
	__u8 next_hop[HOST]; /* the neighbour that it is given to; zero: to be looked up */
	__u64 serial;	   /* another one each time that it is set */
};

/* What has passed on a path.  The program adds to it; user space maps it and only reads. */
struct usage {
	__u64 packets;
	__u64 octets;  /* of payload */
	__u64 dropped; /* packets over the rate */
	__u64 zero;
};

/*
 * A rate, as the times until when what has passed would have taken: a packet passes while that is
 * no more than "burst" ahead of now, and then puts it off by what it costs.
 */
struct bucket {
	struct bpf_spin_lock lock;
	__u32 zero;
	__u64 octet_cost;  /* ns that an octet takes, times 65536; 0: no limit */
	__u64 packet_cost; /* ns that a packet takes; 0: no limit */
	__u64 burst;	   /* ns */
	__u64 octets_at;   /* CLOCK_MONOTONIC, ns */
	__u64 packets_at;
};

/* What user space takes out of a bucket for itself, and what is left: run as a packet. */
struct draw {
	__u8 ethernet[16]; /* not looked at: a packet cannot be shorter */
	__u32 bucket;
	__u32 packets;
	__u64 octets;
};

/* Indices in "counts". */
enum count {
	TO_PEERS,      /* packets that were forwarded */
	TO_CLIENTS,
	OVER_RATE,     /* dropped */
	NO_PATH,       /* passed up, and why: ports are ours, but no path is */
	EXPIRED,       /* its path is over */
	MALFORMED,     /* headers that the stack is to judge, ChannelData shorter than it says */
	VLAN,
	FRAGMENT,
	OPTIONS,       /* IPv4 options, IPv6 extension headers */
	SEGMENTED,     /* several datagrams in one (GSO, GRO) */
	UNFINISHED,    /* its checksum is still to be computed: it was sent on this machine */
	UNCHECKED,     /* no checksum, and one is needed */
	LAST_HOP,      /* TTL or hop limit */
	TOO_BIG,       /* longer than the MTU */
	NOT_MOVED,     /* the kernel could not change the packet; dropped if it was half changed */
	COUNTS
};

#endif
