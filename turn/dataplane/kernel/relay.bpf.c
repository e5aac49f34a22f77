/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Relays the datagrams of bound channels inside the kernel, on the tc ingress hook.
 *
 * Theory of operation.  A datagram for one of the server's ports is looked up by its transport
 * addresses and, where it begins like ChannelData, the channel number.  What is found says where it
 * goes.  The four octets of the ChannelData header (RFC 8656 section 12.4) are taken off or put
 * before the payload, the headers of UDP and IP are written anew, and the neighbour subsystem does
 * the rest.  The payload is not touched, and the checksum of UDP is carried over by what differs:
 * what was damaged on the way here still is at the far end.
 *
 * Everything else goes up to the server's sockets unchanged.  Only what is over the rate is dropped
 * here, and what the kernel left half changed; both are counted.
 *
 * The fields of the IP header follow RFC 8656 sections 13 and 14, preferred behaviour: TTL and hop
 * limit count down as at a router, DSCP and ECN are copied, DF is copied from IPv4 to IPv4, flow
 * labels are zero.
 */
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "relay.h"

char _license[] SEC("license") = "Dual MIT/GPL";

/* Verdicts; the values of tc and of tcx are the same but for the one that asks the next program. */
#define NEXT (-1)
#define DROP 2

/* Values of <sys/socket.h>, which has no place here. */
#define AF_INET 2
#define AF_INET6 10

#define DONT_FRAGMENT 0x4000
#define MORE 0x2000
#define OFFSET 0x1fff
#define CHANNEL_HEADER 4
#define LEAST_MTU 1280

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct path_key);
	__type(value, struct path);
} paths SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct usage);
} usage SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct bucket);
} buckets SEC(".maps");

/* Which UDP ports of this machine any path begins at, a bit each. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536 / 64);
	__type(key, __u32);
	__type(value, __u64);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

/* A datagram as it came, and the path that it is to take. */
struct datagram {
	struct path_key key;
	__u32 ipv6;	 /* whether it came over IPv6 */
	__u32 length;	 /* of what the UDP header and all behind it take */
	__u32 pseudo;	 /* sum of the pseudo-header's words, not folded */
	__u16 check;	 /* UDP checksum, as it stands */
	__u16 fragment;	 /* IPv4: flags and offset, host order */
	__u8 traffic;	 /* TOS or traffic class: DSCP and ECN */
	__u8 hops;	 /* TTL or hop limit */
	__u16 framed;	 /* ChannelData: the length in its header */
	__u8 begins[CHANNEL_HEADER];
};

struct headers4 {
	struct iphdr ip;
	struct udphdr udp;
	__u8 channel[CHANNEL_HEADER];
};

struct headers6 {
	struct ipv6hdr ip;
	struct udphdr udp;
	__u8 channel[CHANNEL_HEADER];
};

static __always_inline void count(__u32 what)
{
	__u64 *counter = bpf_map_lookup_elem(&counts, &what);

	if (counter)
		*counter += 1;
}

static __always_inline int pass_up(__u32 why)
{
	count(why);
	return NEXT;
}

/* Sums of words as RFC 1071 has them; they are folded only at the end. */

static __always_inline __u64 sum(const void *octets, int size)
{
	const __u32 *words = octets;
	__u64 total = 0;

#pragma clang loop unroll(full)
	for (int n = 0; n < size / 4; n++)
		total += words[n];
	return total;
}

static __always_inline __u16 folded(__u64 total)
{
	total = (total >> 32) + (total & 0xffffffff);
	total = (total >> 32) + (total & 0xffffffff);
	total = (total >> 16) + (total & 0xffff);
	total = (total >> 16) + (total & 0xffff);
	total = (total >> 16) + (total & 0xffff);
	return total;
}

/* The negative of a sum, to be added to another. */
static __always_inline __u64 minus(__u64 total)
{
	return (__u16)~folded(total);
}

/* Rates. */

static __always_inline int takes(struct bucket *bucket, __u64 now, __u64 octets, __u64 packets)
{
	__u64 until = now + bucket->burst;
	int granted = 0;

	bpf_spin_lock(&bucket->lock);
	if ((!bucket->octet_cost || bucket->octets_at <= until) &&
	    (!bucket->packet_cost || bucket->packets_at <= until)) {
		if (bucket->octets_at < now)
			bucket->octets_at = now;
		if (bucket->packets_at < now)
			bucket->packets_at = now;
		bucket->octets_at += octets * bucket->octet_cost >> 16;
		bucket->packets_at += packets * bucket->packet_cost;
		granted = 1;
	}
	bpf_spin_unlock(&bucket->lock);
	return granted;
}

static __always_inline void give_back(struct bucket *bucket, __u64 octets)
{
	bpf_spin_lock(&bucket->lock);
	bucket->octets_at -= octets * bucket->octet_cost >> 16;
	bucket->packets_at -= bucket->packet_cost;
	bpf_spin_unlock(&bucket->lock);
}

/* Whether the user's rate and the client's both have room for a packet, which is then taken. */
static __always_inline int within_rates(const struct path *path, __u64 now, __u64 octets)
{
	__u32 user = path->buckets[0], client = path->buckets[1];
	struct bucket *first = 0, *second = 0;

	if (user) {
		first = bpf_map_lookup_elem(&buckets, &user);
		if (first && !takes(first, now, octets, 1))
			return 0;
	}
	if (client) {
		second = bpf_map_lookup_elem(&buckets, &client);
		if (second && !takes(second, now, octets, 1)) {
			if (first)
				give_back(first, octets);
			return 0;
		}
	}
	return 1;
}

/* What came. */

static __always_inline int is_ours(__be16 port)
{
	__u32 number = bpf_ntohs(port), word = number >> 6;
	__u64 *bits = bpf_map_lookup_elem(&ports, &word);

	return bits && *bits >> (number & 63) & 1;
}

static __always_inline void map_address(__u8 *host, __be32 address)
{
	__u32 *words = (__u32 *)host;

	words[0] = words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = address;
}

/*
 * Each step below is a function only to be read: all of them are inlined.  What one returns is the
 * verdict plus GO_ON, or 0: go on.
 */
#define GO_ON 256
#define VERDICT(verdict) ((verdict) + GO_ON)

/* Have the headers up to the end of UDP's, and what ChannelData begins with, where they can be read. */
static __always_inline int has_headers(struct __sk_buff *skb, __u32 at)
{
	__u32 size = at + sizeof(struct udphdr) + CHANNEL_HEADER;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (data + size <= end)
		return 1;
	return !bpf_skb_pull_data(skb, size < skb->len ? size : skb->len);
}

/* Read the UDP header and what is behind it; "space" is what IP has for both. */
static __always_inline int read_udp(struct __sk_buff *skb, struct datagram *it, struct udphdr *udp,
				    __u32 at, __u32 space)
{
	void *begins = udp + 1;

	it->length = bpf_ntohs(udp->len);
	if (it->length != space || at + space > skb->len)
		return VERDICT(pass_up(MALFORMED));
	if (it->length >= sizeof(*udp) + CHANNEL_HEADER &&
	    begins + CHANNEL_HEADER <= (void *)(long)skb->data_end)
		__builtin_memcpy(it->begins, begins, CHANNEL_HEADER);
	it->key.local_port = udp->dest;
	it->key.remote_port = udp->source;
	it->check = udp->check;
	it->pseudo += bpf_htons(IPPROTO_UDP) + udp->len;
	return 0;
}

/* Where the ports are behind options they are loaded: see read4. */
static __always_inline int read_options(struct __sk_buff *skb, struct datagram *it, __u32 size)
{
	__u32 at = ETH_HLEN + size + offsetof(struct udphdr, dest);
	__be16 port;

	if (bpf_skb_load_bytes(skb, at, &port, sizeof(port)) || !is_ours(port))
		return VERDICT(NEXT);
	if (skb->vlan_present)
		return VERDICT(pass_up(VLAN));
	return VERDICT(pass_up(it->fragment & MORE ? FRAGMENT : OPTIONS));
}

/* Without CAP_PERFMON no pointer to a packet may be moved by what the packet says. */
static __always_inline int read4(struct __sk_buff *skb, struct datagram *it)
{
	const __u32 at = ETH_HLEN + sizeof(struct iphdr);
	struct iphdr *ip;
	struct udphdr *udp;
	__u32 size;

	ip = (void *)(long)skb->data + ETH_HLEN;
	if ((void *)(ip + 1) > (void *)(long)skb->data_end || ip->protocol != IPPROTO_UDP ||
	    ip->version != 4 || ip->ihl * 4u < sizeof(*ip))
		return VERDICT(NEXT);
	it->fragment = bpf_ntohs(ip->frag_off);
	if (it->fragment & OFFSET) /* ports are in the first one only */
		return VERDICT(NEXT);
	if (ip->ihl * 4u != sizeof(*ip))
		return read_options(skb, it, ip->ihl * 4);
	if (!has_headers(skb, at))
		return VERDICT(NEXT);
	ip = (void *)(long)skb->data + ETH_HLEN;
	udp = (void *)(ip + 1);
	if ((void *)(udp + 1) > (void *)(long)skb->data_end || !is_ours(udp->dest))
		return VERDICT(NEXT);
	if (skb->vlan_present)
		return VERDICT(pass_up(VLAN));
	if (it->fragment & MORE)
		return VERDICT(pass_up(FRAGMENT));
	if (skb->gso_size)
		return VERDICT(pass_up(SEGMENTED));
	/* The new header's checksum will be right: that of the old one has to be, too. */
	if (folded(sum(ip, sizeof(*ip))) != 0xffff)
		return VERDICT(pass_up(MALFORMED));
	map_address(it->key.local, ip->daddr);
	map_address(it->key.remote, ip->saddr);
	it->traffic = ip->tos;
	it->hops = ip->ttl;
	it->pseudo = folded(sum(&ip->saddr, 8));
	size = bpf_ntohs(ip->tot_len);
	if (size < sizeof(*ip) + sizeof(*udp))
		return VERDICT(pass_up(MALFORMED));
	return read_udp(skb, it, udp, at, size - sizeof(*ip));
}

static __always_inline int read6(struct __sk_buff *skb, struct datagram *it)
{
	const __u32 at = ETH_HLEN + sizeof(struct ipv6hdr);
	struct ipv6hdr *ip;
	struct udphdr *udp;

	ip = (void *)(long)skb->data + ETH_HLEN;
	/* Behind extension headers, those of fragments too, is no port that could be looked at. */
	if ((void *)(ip + 1) > (void *)(long)skb->data_end || ip->nexthdr != IPPROTO_UDP ||
	    ip->version != 6 || !has_headers(skb, at))
		return VERDICT(NEXT);
	ip = (void *)(long)skb->data + ETH_HLEN;
	udp = (void *)(ip + 1);
	if ((void *)(udp + 1) > (void *)(long)skb->data_end || !is_ours(udp->dest))
		return VERDICT(NEXT);
	if (skb->vlan_present)
		return VERDICT(pass_up(VLAN));
	if (skb->gso_size)
		return VERDICT(pass_up(SEGMENTED));
	it->ipv6 = 1;
	__builtin_memcpy(it->key.local, &ip->daddr, HOST);
	__builtin_memcpy(it->key.remote, &ip->saddr, HOST);
	it->traffic = bpf_ntohl(*(__be32 *)ip) >> 20;
	it->hops = ip->hop_limit;
	it->pseudo = folded(sum(&ip->saddr, 2 * HOST));
	return read_udp(skb, it, udp, at, bpf_ntohs(ip->payload_len));
}

/* Where it goes. */

static __always_inline struct path *look_up(struct datagram *it)
{
	struct path *path = 0;

	it->key.channel = 0;
	/* RFC 8656 section 12: channel numbers are 0x4000 to 0x4FFF. */
	if (it->begins[0] >> 4 == 4) {
		__builtin_memcpy(&it->key.channel, it->begins, 2);
		path = bpf_map_lookup_elem(&paths, &it->key);
		if (path)
			return path;
		it->key.channel = 0;
	}
	return bpf_map_lookup_elem(&paths, &it->key);
}

/*
 * The memory of a path that is taken out or set anew may at once be another one's, under the eyes
 * of who has just looked it up.  So the path is copied, and looked up again: where the serial
 * number is the same, nobody had touched it before the copy was made.
 */
static __always_inline int find(struct datagram *it, struct path *path)
{
	struct path *found = look_up(it);

	if (!found)
		return 0;
	*path = *found;
	barrier();
	found = bpf_map_lookup_elem(&paths, &it->key);
	return found && found->serial == path->serial;
}

static __always_inline int is_mapped(const __u8 *host)
{
	const __u32 *words = (const __u32 *)host;

	return !words[0] && !words[1] && words[2] == bpf_htonl(0xffff);
}

/*
 * The sum of the octets behind the payload, which are not relayed; they are at most three.  Where
 * they begin in the middle of a word, the octets of the sum change places (RFC 1071 section 2 (B)).
 */
static __always_inline int padding(struct __sk_buff *skb, __u32 at, __u32 size, __u32 odd,
				   __u64 *total)
{
	__u16 words[2] = {};
	int failed = 0;

	if (size == 1)
		failed = bpf_skb_load_bytes(skb, at, words, 1);
	else if (size == 2)
		failed = bpf_skb_load_bytes(skb, at, words, 2);
	else
		failed = bpf_skb_load_bytes(skb, at, words, 3);
	*total = folded(words[0] + words[1]);
	if (odd)
		*total = __builtin_bswap16(*total);
	return !failed;
}

static __always_inline int send4(struct __sk_buff *skb, const struct path *path,
				 const struct datagram *it, struct headers4 *to, __u32 size)
{
	__u32 length = sizeof(to->ip) + size;

	to->ip.version = 4;
	to->ip.ihl = sizeof(to->ip) / 4;
	to->ip.tos = it->traffic;
	to->ip.tot_len = bpf_htons(length);
	to->ip.id = bpf_get_prandom_u32();
	if (!it->ipv6)
		to->ip.frag_off = bpf_htons(it->fragment & DONT_FRAGMENT);
	else /* RFC 7915 section 5.1: what had room in any IPv6 link may be fragmented */
		to->ip.frag_off = length > LEAST_MTU - 20 ? bpf_htons(DONT_FRAGMENT) : 0;
	to->ip.ttl = it->hops - 1;
	to->ip.protocol = IPPROTO_UDP;
	__builtin_memcpy(&to->ip.saddr, path->source + HOST - 4, 4);
	__builtin_memcpy(&to->ip.daddr, path->destination + HOST - 4, 4);
	to->ip.check = ~folded(sum(&to->ip, sizeof(to->ip)));
	return bpf_skb_store_bytes(skb, ETH_HLEN, to,
				   sizeof(*to) - (path->channel ? 0 : CHANNEL_HEADER),
				   BPF_F_RECOMPUTE_CSUM);
}

static __always_inline int send6(struct __sk_buff *skb, const struct path *path,
				 const struct datagram *it, struct headers6 *to, __u32 size)
{
	*(__be32 *)&to->ip = bpf_htonl(6u << 28 | (__u32)it->traffic << 20);
	to->ip.payload_len = bpf_htons(size);
	to->ip.nexthdr = IPPROTO_UDP;
	to->ip.hop_limit = it->hops - 1;
	__builtin_memcpy(&to->ip.saddr, path->source, HOST);
	__builtin_memcpy(&to->ip.daddr, path->destination, HOST);
	return bpf_skb_store_bytes(skb, ETH_HLEN, to,
				   sizeof(*to) - (path->channel ? 0 : CHANNEL_HEADER),
				   BPF_F_RECOMPUTE_CSUM);
}

static __always_inline void fill_udp(struct udphdr *udp, __u8 *channel, const struct path *path,
				     __u32 size, __u16 check)
{
	udp->source = path->source_port;
	udp->dest = path->destination_port;
	udp->len = bpf_htons(size);
	udp->check = check;
	if (path->channel) {
		__be16 inner = bpf_htons(size - sizeof(*udp) - CHANNEL_HEADER);

		__builtin_memcpy(channel, &path->channel, 2);
		__builtin_memcpy(channel + 2, &inner, 2);
	}
}

/* Give the packet to the next hop.  To name it saves the kernel a look at its routes. */
static __always_inline int leave(const struct path *path)
{
	const __u32 *words = (const __u32 *)path->next_hop;
	struct bpf_redir_neigh hop = {};

	if (is_mapped(path->next_hop)) {
		hop.nh_family = AF_INET;
		hop.ipv4_nh = words[3];
	} else if (words[0] | words[1] | words[2] | words[3]) {
		hop.nh_family = AF_INET6;
		__builtin_memcpy(hop.ipv6_nh, path->next_hop, HOST);
	} else {
		return bpf_redirect_neigh(path->ifindex, 0, 0, 0);
	}
	return bpf_redirect_neigh(path->ifindex, &hop, sizeof(hop), 0);
}

SEC("tc")
int relay(struct __sk_buff *skb)
{
	struct datagram it = {};
	struct path copy, *path = &copy;
	struct usage *used;
	__u32 base, size, payload, extra = 0, end, most, to6, index;
	__u64 now, check, cut = 0;
	int verdict, more, changed = 0;

	if (skb->pkt_type != PACKET_HOST)
		return NEXT;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		base = ETH_HLEN + sizeof(struct iphdr);
		verdict = read4(skb, &it);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		base = ETH_HLEN + sizeof(struct ipv6hdr);
		verdict = read6(skb, &it);
	} else {
		return NEXT;
	}
	if (verdict)
		return verdict - GO_ON;

	if (!find(&it, path))
		return pass_up(NO_PATH);
	now = bpf_ktime_get_ns();
	if (now >= path->expires)
		return pass_up(EXPIRED);

	if (it.key.channel) {
		payload = bpf_ntohs(*(__be16 *)(it.begins + 2));
		if (it.length < sizeof(struct udphdr) + CHANNEL_HEADER + payload)
			return pass_up(MALFORMED);
		extra = it.length - sizeof(struct udphdr) - CHANNEL_HEADER - payload;
		size = sizeof(struct udphdr) + payload;
		/* RFC 8656 section 12.5: padding to a multiple of four octets MAY be there. */
		if (extra > 3)
			return pass_up(MALFORMED);
	} else {
		payload = it.length - sizeof(struct udphdr);
		size = it.length + CHANNEL_HEADER;
	}
	to6 = !is_mapped(path->destination);
	most = path->mtu;
	/* RFC 7915 section 4: without DF the IPv6 packet may have to be fragmented, by the sockets. */
	if (to6 && !it.ipv6 && !(it.fragment & DONT_FRAGMENT) && most > LEAST_MTU)
		most = LEAST_MTU;
	if ((to6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + size > most)
		return pass_up(TOO_BIG);
	if (it.hops <= 1)
		return pass_up(LAST_HOP);
	if (!it.check) {
		if (it.ipv6) /* RFC 8200 section 8.1: such a datagram is to be discarded */
			return pass_up(MALFORMED);
		if (to6)
			return pass_up(UNCHECKED);
	} else if (folded(it.pseudo) == it.check) {
		/*
		 * What was sent on this machine may have no more than the sum of its pseudo-header,
		 * the rest being left to a network card: what there is would not be found any more
		 * after the headers have moved.  Of others, one in 65,536 looks the same.
		 */
		return pass_up(UNFINISHED);
	}

	if (extra && !padding(skb, base + it.length - extra, extra, payload & 1, &cut))
		return pass_up(MALFORMED);

	if (!within_rates(path, now, payload)) {
		count(OVER_RATE);
		index = path->usage;
		used = bpf_map_lookup_elem(&usage, &index);
		if (used)
			__sync_fetch_and_add(&used->dropped, 1);
		return DROP;
	}

	/* What the checksum was of, and what it is to be of. */
	check = 0;
	if (it.check) {
		__u64 old = it.pseudo, new;
		__be16 length = bpf_htons(it.length);

		old += length + it.key.local_port + it.key.remote_port + cut;
		length = bpf_htons(size);
		new = 2ull * length + bpf_htons(IPPROTO_UDP);
		new += path->source_port + path->destination_port;
		if (to6)
			new += sum(path->source, 2 * HOST);
		else
			new += sum(path->source + HOST - 4, 4) +
			       sum(path->destination + HOST - 4, 4);
		if (it.key.channel)
			old += sum(it.begins, CHANNEL_HEADER);
		else
			new += path->channel + bpf_htons(payload);
		check = (__u16)~folded((__u16)~it.check + minus(old) + folded(new));
		if (!check)
			check = 0xffff; /* RFC 768: zero means that there is none */
	}

	/* What is behind the payload: padding, of the channel and of the Ethernet frame. */
	end = base + it.length - extra;
	if (skb->len > end) {
		if (bpf_skb_change_tail(skb, end, 0))
			return pass_up(NOT_MOVED);
		changed = extra;
	}
	if (to6 != it.ipv6) {
		if (bpf_skb_change_proto(skb, bpf_htons(to6 ? ETH_P_IPV6 : ETH_P_IP), 0))
			goto not_moved;
		changed = 1;
	}
	more = it.key.channel ? -CHANNEL_HEADER : CHANNEL_HEADER;
	if (bpf_skb_adjust_room(skb, more, BPF_ADJ_ROOM_NET, 0))
		goto not_moved;
	changed = 1;
	if (to6) {
		struct headers6 to = {};

		fill_udp(&to.udp, to.channel, path, size, check);
		if (send6(skb, path, &it, &to, size))
			goto not_moved;
	} else {
		struct headers4 to = {};

		fill_udp(&to.udp, to.channel, path, size, check);
		if (send4(skb, path, &it, &to, size))
			goto not_moved;
	}
	count(it.key.channel ? TO_PEERS : TO_CLIENTS);
	index = path->usage;
	used = bpf_map_lookup_elem(&usage, &index);
	if (used) {
		__sync_fetch_and_add(&used->packets, 1);
		__sync_fetch_and_add(&used->octets, payload);
	}
	return leave(path);

not_moved:
	count(NOT_MOVED);
	return changed ? DROP : NEXT;
}

/* Run by user space on a struct draw: takes out of a bucket what it relays itself. */
SEC("tc")
int draw(struct __sk_buff *skb)
{
	struct draw *wanted = (void *)(long)skb->data;
	struct bucket *bucket;
	__u32 index;

	if ((void *)(wanted + 1) > (void *)(long)skb->data_end)
		return 0;
	index = wanted->bucket;
	bucket = bpf_map_lookup_elem(&buckets, &index);
	return bucket && takes(bucket, bpf_ktime_get_ns(), wanted->octets, wanted->packets);
}
