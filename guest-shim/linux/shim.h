/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/*
 * C ABI of the Rust core. src/ffi.rs is the other side of it, field by field.
 *
 * A transport is used under one lock. page is the whole message page. Errors
 * are negative errno numbers. None of these functions sleeps or allocates.
 */
#ifndef SHIM_H
#define SHIM_H

#include <linux/types.h>

struct shim_transport;	/* opaque: shim_transport_size() bytes */
struct shim_pool;	/* opaque: shim_pool_size() bytes */

struct shim_negotiated {
	u32 max_message_size;
	u32 shared_pool;	/* the backend offers it */
};

enum shim_request_kind {
	SHIM_DEVICE_INFO,
	SHIM_GET_FEATURES,
	SHIM_SET_FEATURES,	/* features */
	SHIM_GET_CONFIG,	/* offset, size */
	SHIM_SET_CONFIG,	/* offset, size, data */
	SHIM_GET_STATUS,
	SHIM_SET_STATUS,	/* status; 0 resets the device */
	SHIM_GET_VQUEUE,	/* index */
	SHIM_SET_VQUEUE,	/* index, size, descriptor, driver, device */
	SHIM_RESET_VQUEUE,	/* index */
	SHIM_BIND_QUEUE,	/* index, port */
	SHIM_SHARE_PAGES,	/* index, count, reference */
};

struct shim_request {
	u32 kind;
	u32 index;
	u32 offset;
	u32 size;
	u32 status;
	u32 port;
	u32 count;
	u32 reference;
	u64 features;
	u64 descriptor;
	u64 driver;
	u64 device;
	const void *data;
};

struct shim_answer {
	u32 device_id;
	u32 vendor_id;
	u32 max_virtqueues;
	u32 status;
	u32 config_generation;
	u32 config_size;	/* bytes of data that came with it, or of all */
	u32 queue_size;
	u32 queue_max_size;	/* a power of two; 0: no such queue */
	u32 queue_enabled;
	u32 bound;
	u32 shared;
	u64 features;
};

enum shim_what {
	SHIM_DRAINED,		/* signal: the backend must be signalled */
	SHIM_DROPPED,
	SHIM_ANSWERED,
	SHIM_CONFIG_CHANGED,	/* status */
	SHIM_USED,		/* index, not checked against the queues */
	SHIM_BROKEN,
	SHIM_PINGED,		/* answered when the page is drained */
};

struct shim_received {
	u32 what;
	u32 index;
	u32 status;
	u32 signal;
};

struct shim_counters {
	u64 malformed;
	u64 unexpected;
};

enum shim_action {
	SHIM_NOTHING,
	SHIM_OFFER,
	SHIM_CONNECT,
	SHIM_CLOSE,
	SHIM_FINISH,
};

struct shim_plan {
	u32 pages;
	u32 read_only;
};

struct shim_grants {
	u32 first;
	u32 pages;
};

/* The bytes of a buffer in one of its pages. */
struct shim_piece {
	u32 offset;
	u32 length;
	u32 fills_page;
};

/* A queue's ring: where its areas are, and how its pages are granted. */
struct shim_ring {
	u64 descriptor;
	u64 driver;
	u64 device;
	u32 entries;
	u32 first;
	u32 pages;
	u32 read_only;	/* so many, from the first on */
};

/* What came with one interrupt of the message channel. All zeros at its start. */
struct shim_interrupt {
	u32 handled;
	u32 useful;
};

enum shim_message {
	SHIM_NONE,		/* none is left */
	SHIM_USELESS,
	SHIM_USEFUL,
};

enum shim_next {
	SHIM_NEXT,		/* the next message */
	SHIM_LATER,		/* there is more, others first */
	SHIM_DONE,
	SHIM_DONE_FOR_NOTHING,	/* the interrupt was spurious */
};

/* What the last EVENT_CONFIG told. All zeros at first. */
struct shim_announced {
	u32 any;
	u32 status;
	u32 generation;
};

/* What looks at the generation found. All zeros at first. */
struct shim_generations {
	u32 last;
	u32 changing;
	u64 since;
};

enum shim_connection {
	SHIM_OPEN,
	SHIM_ANSWERING,		/* a request was answered just now */
	SHIM_LOST,
};

enum shim_removal {
	SHIM_REMOVE,
	SHIM_ASK_DEVICE,	/* for an answer, before it is decided */
	SHIM_KEEP,		/* the driver would wait for ever */
};

enum shim_bounce {
	SHIM_BOUNCE_AUTO,
	SHIM_BOUNCE_ALWAYS,
	SHIM_BOUNCE_NEVER,
};

size_t shim_transport_size(void);
void shim_transport_init(struct shim_transport *transport,
			 const struct shim_negotiated *negotiated);

/* -1: revision unfit, -2: size unfit. */
int shim_negotiate(u32 revision, u32 max_message_size, u32 bus_features,
		   struct shim_negotiated *negotiated);

/* Of the transport features that the backend offers, those that are taken. */
u32 shim_transport_features(u32 offered);

u32 shim_next_action(u32 own_state, u32 backend_state);

/*
 * -EAGAIN: the page is full, try again when signalled. -ERANGE: the device has
 * no such configuration.
 */
int shim_send(struct shim_transport *transport, const void *page,
	      const struct shim_request *request);

void shim_receive(struct shim_transport *transport, const void *page,
		  struct shim_received *received);

/*
 * -EAGAIN: not there yet, -EPROTO: does not fit, -EIO: given up. data takes
 * the bytes of configuration that came with it, unless it is NULL.
 */
int shim_take_answer(struct shim_transport *transport,
		     struct shim_answer *answer, void *data, u32 room);

/* 1: signal the backend; 0: held back until the page has room. */
int shim_event_avail(struct shim_transport *transport, const void *page,
		     u32 index);

void shim_give_up(struct shim_transport *transport);
u32 shim_generation(const struct shim_transport *transport);
u32 shim_max_config_bytes(const struct shim_transport *transport);
void shim_counters(const struct shim_transport *transport,
		   struct shim_counters *counters);

/* pooled: whether there is a pool. */
u64 shim_dma_max_bytes(u32 pooled);

/* direction: enum dma_data_direction. -EINVAL: cannot be granted. */
int shim_dma_plan(u64 physical, u64 length, u32 direction,
		  struct shim_plan *plan);

/* 0: there are not that many references. */
u64 shim_dma_address(u64 physical, u64 length, u32 first);

/* -EINVAL: not an address that shim_dma_address() made. */
int shim_dma_release(u64 address, u64 length, struct shim_grants *grants);

/* -EINVAL: not a ring to be granted. */
int shim_ring_plan(struct shim_ring *ring);

/* address: physical or DMA address. -EINVAL: the buffer has fewer pages. */
int shim_dma_piece(u64 address, u64 length, u32 index,
		   struct shim_piece *piece);

/* direction: enum dma_data_direction. */
u32 shim_dma_device_reads(u32 direction);
u32 shim_dma_device_writes(u32 direction);

/* policy: enum shim_bounce. trusted: what the toolstack says of the backend. */
u32 shim_bounces(u32 policy, u32 trusted, u16 backend);

/* message: enum shim_message. enum shim_next is what comes. */
u32 shim_interrupt_count(struct shim_interrupt *interrupt, u32 message);

/* 1: the event tells something that the one before did not. */
u32 shim_config_is_news(struct shim_announced *announced, u32 status,
			u32 generation);

/* now: in milliseconds. 1: the generation will never stand still. */
u32 shim_generation_look(struct shim_generations *generations, u32 generation,
			 u64 now);

/* 1: the driver of such a device waits for its requests when it is removed. */
u32 shim_waits_for_requests(u32 device_id);

/* pages: of unfinished requests. connection: enum shim_connection. */
u32 shim_removal(u32 device_id, u32 pages, u32 connection);

/* The pages of a chunk, which are shared at a time, and the chunks of a pool. */
#define SHIM_CHUNK_PAGES 64
#define SHIM_MAX_CHUNKS 64

/*
 * Where a buffer lies in the pool, or a part of one. For what it takes of a chunk
 * the glue keeps notes: of where the bytes come from that stand stride bytes apart.
 */
struct shim_place {
	u64 address;
	u32 chunk;
	u32 start;	/* byte of the chunk */
	u32 note;	/* the first */
	u32 notes;
	u32 stride;
	u32 offset;	/* of the buffer, from where the first note's bytes begin */
};

/* These are used without a lock. */
size_t shim_pool_size(void);
void shim_pool_init(struct shim_pool *pool);

/* The most chunks, where pages are asked for and there are so many references. */
u32 shim_pool_chunk_limit(u32 pages, u32 references);

/* The first chunks are taken from. */
void shim_pool_open(const struct shim_pool *pool, u32 chunks);
u32 shim_pool_chunks(const struct shim_pool *pool);
u32 shim_pool_in_use(const struct shim_pool *pool);

/* Notes to be kept on a chunk. */
u32 shim_pool_notes(u32 chunk);

/* -EINVAL: not a buffer for the pool, -ENOSPC: no room. */
int shim_pool_take(const struct shim_pool *pool, u64 length, u32 processor,
		   struct shim_place *place);

/* -EINVAL: it was not taken. */
int shim_pool_give_back(const struct shim_pool *pool, u64 address, u64 length);

/* -EINVAL: not an address in the pool. */
int shim_pool_find(u64 address, u64 length, struct shim_place *place);

#endif /* SHIM_H */
