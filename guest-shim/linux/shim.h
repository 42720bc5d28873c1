/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/*
 * C ABI of the Rust core. ../core/src/ffi.rs is the other side of it, field by field.
 *
 * All functions may be called in any context: none sleeps, allocates or takes a
 * lock. The caller holds one lock for all calls with the same transport.
 */
#ifndef SHIM_H
#define SHIM_H

#include <linux/types.h>

struct shim_transport;	/* opaque: shim_transport_size() bytes */
struct shim_pool;	/* opaque: shim_pool_size() bytes */
struct shim_unfinished;	/* opaque: shim_unfinished_size() bytes */

struct shim_negotiated {
	u32 max_message_size;
	u32 shared_pool;	/* the backend offers it */
	u32 unshare;		/* the backend gives pages of it back */
	u32 movable;		/* a backend in another domain can go on with the device */
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
	SHIM_UNSHARE_PAGES,	/* index, count */
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
	u32 config_size;	/* bytes in the answer, or of the whole configuration */
	u32 queue_size;
	u32 queue_max_size;	/* a power of two; 0: no such queue */
	u32 queue_enabled;
	u32 bound;
	u32 shared;
	u32 unshared;
	u64 features;
};

enum shim_what {
	SHIM_DRAINED,		/* no message is left; signal: notify the backend */
	SHIM_DROPPED,
	SHIM_ANSWERED,
	SHIM_CONFIG_CHANGED,	/* status */
	SHIM_USED,		/* index, not checked against the queues */
	SHIM_BROKEN,
	SHIM_PINGED,		/* the core answers when the page is drained */
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

/* A queue's ring: the addresses of its areas, and how to grant its pages. */
struct shim_ring {
	u64 descriptor;
	u64 driver;
	u64 device;
	u32 entries;
	u32 first;
	u32 pages;
	u32 read_only;	/* number of pages at the start that are granted read-only */
};

/* Counts the messages of one interrupt. The caller zeroes it first. */
struct shim_interrupt {
	u32 handled;
	u32 useful;
};

enum shim_message {
	SHIM_NONE,		/* no message is left */
	SHIM_USELESS,
	SHIM_USEFUL,
};

enum shim_next {
	SHIM_RECEIVE,		/* receive the next message */
	SHIM_LATER,		/* continue later, in a workqueue */
	SHIM_DONE,
	SHIM_SPURIOUS,		/* the interrupt was spurious */
};

/* The content of the last EVENT_CONFIG. The caller zeroes it first. */
struct shim_announced {
	u32 any;
	u32 status;
	u32 generation;
};

/* The history of the configuration's generation. The caller zeroes it first. */
struct shim_generations {
	u32 last;
	u32 changing;
	u64 since;
};

/* The request of a queue that last did not wait. The caller zeroes it first. */
struct shim_admission {
	u64 request;
};

enum shim_backend_state {
	SHIM_BACKEND_OPEN,
	SHIM_BACKEND_ANSWERING,	/* the device just answered a request */
	SHIM_BACKEND_BROKEN,
};

#define SHIM_TRAITS_CONFIG 64

/* What a driver knows of its device. */
struct shim_traits {
	u32 device_id;
	u32 pool;		/* the device maps pages in advance */
	u64 features;		/* accepted, or offered */
	u8 config[SHIM_TRAITS_CONFIG];	/* shim_traits_size() bytes, then zeros */
};

/* What a driver cannot cope with. */
enum shim_difference {
	SHIM_NO_DIFFERENCE,
	SHIM_DEVICE_ID,
	SHIM_FEATURES,
	SHIM_POOL,
	SHIM_CAPACITY,
	SHIM_BLOCK_SIZE,
	SHIM_QUEUES,
	SHIM_LIMITS,
	SHIM_ADDRESS,
	SHIM_PORTS,
	SHIM_READ_ONLY,
};

enum shim_removal {
	SHIM_REMOVE,
	SHIM_ASK_DEVICE,	/* send a request first, then call again */
	SHIM_KEEP,		/* removal would block forever */
};

enum shim_bounce_policy {
	SHIM_BOUNCE_AUTO,
	SHIM_BOUNCE_ALWAYS,
	SHIM_BOUNCE_NEVER,
};

/**
 * shim_transport_size() - size of a transport
 *
 * Return: Bytes to allocate, with the alignment of kmalloc().
 */
size_t shim_transport_size(void);

/**
 * shim_transport_init() - initialise a transport
 * @transport: shim_transport_size() bytes
 * @negotiated: result of shim_negotiate()
 */
void shim_transport_init(struct shim_transport *transport,
			 const struct shim_negotiated *negotiated);

/**
 * shim_negotiate() - check the backend's keys [2.3]
 * @revision: value of virtio-msg-revision
 * @max_message_size: value of virtio-msg-max-size
 * @bus_features: value of virtio-msg-bus-features
 * @negotiated: filled in
 *
 * Return: 0, -1 if the revision is not supported, -2 if the size is not.
 */
int shim_negotiate(u32 revision, u32 max_message_size, u32 bus_features,
		   struct shim_negotiated *negotiated);

/**
 * shim_transport_features() - select transport features [2.11]
 * @offered: features that the backend offers
 *
 * Return: The features that the driver side accepts.
 */
u32 shim_transport_features(u32 offered);

/**
 * shim_next_action() - look up both states of the connection
 * @own_state: enum xenbus_state of the frontend
 * @backend_state: enum xenbus_state of the backend
 *
 * Return: enum shim_action.
 */
u32 shim_next_action(u32 own_state, u32 backend_state);

/**
 * shim_send() - write a request into the message page
 * @transport: transport
 * @page: message page
 * @request: request
 *
 * Return: 0, -EAGAIN if the page is full: retry when the backend signals,
 * -ERANGE if the device has no such configuration, -EIO if the transport was
 * given up, or another negative errno number.
 */
int shim_send(struct shim_transport *transport, const void *page,
	      const struct shim_request *request);

/**
 * shim_receive() - take one message from the message page
 * @transport: transport
 * @page: message page
 * @received: filled in
 */
void shim_receive(struct shim_transport *transport, const void *page,
		  struct shim_received *received);

/**
 * shim_take_answer() - take the answer to the last request
 * @transport: transport
 * @answer: filled in
 * @data: buffer for bytes of configuration, or NULL
 * @capacity: size of @data in bytes
 *
 * Return: 0, -EAGAIN if there is no answer yet, -EPROTO if the answer does not
 * fit the request, -EIO if the transport was given up.
 */
int shim_take_answer(struct shim_transport *transport,
		     struct shim_answer *answer, void *data, u32 capacity);

/**
 * shim_event_avail() - write EVENT_AVAIL into the message page
 * @transport: transport
 * @page: message page
 * @index: queue
 *
 * Return: 1 to signal the backend, 0 if the event is delayed until the page has
 * a free slot, or a negative errno number.
 */
int shim_event_avail(struct shim_transport *transport, const void *page,
		     u32 index);

/**
 * shim_give_up() - fail all later requests and events
 * @transport: transport
 */
void shim_give_up(struct shim_transport *transport);

/**
 * shim_generation() - generation of the configuration, as last reported
 * @transport: transport
 *
 * Return: Generation.
 */
u32 shim_generation(const struct shim_transport *transport);

/**
 * shim_max_config_bytes() - bytes of configuration that fit a message
 * @transport: transport
 *
 * Return: Number of bytes.
 */
u32 shim_max_config_bytes(const struct shim_transport *transport);

/**
 * shim_counters() - read the counters of dropped messages
 * @transport: transport
 * @counters: filled in
 */
void shim_counters(const struct shim_transport *transport,
		   struct shim_counters *counters);

/**
 * shim_dma_max_bytes() - longest buffer that a driver should map
 * @pooled: whether the device has a pool
 *
 * Return: Number of bytes.
 */
u64 shim_dma_max_bytes(u32 pooled);

/**
 * shim_dma_plan() - plan how to grant a buffer
 * @physical: physical address
 * @length: bytes
 * @direction: enum dma_data_direction
 * @plan: filled in
 *
 * Return: 0, or -EINVAL if the buffer cannot be granted.
 */
int shim_dma_plan(u64 physical, u64 length, u32 direction,
		  struct shim_plan *plan);

/**
 * shim_dma_address() - DMA address of a granted buffer
 * @physical: physical address
 * @length: bytes
 * @first: first of the consecutive grant references
 *
 * Return: DMA address, or 0 if the references are out of range.
 */
u64 shim_dma_address(u64 physical, u64 length, u32 first);

/**
 * shim_dma_references() - grant references of a DMA address
 * @address: DMA address
 * @length: bytes
 * @grants: filled in
 *
 * Return: 0, or -EINVAL if shim_dma_address() cannot have made @address.
 */
int shim_dma_references(u64 address, u64 length, struct shim_grants *grants);

/**
 * shim_ring_plan() - plan how to grant a ring
 * @ring: addresses and entries on input; first, pages and read_only on output
 *
 * Return: 0, or -EINVAL if the ring's layout cannot be granted.
 */
int shim_ring_plan(struct shim_ring *ring);

/**
 * shim_dma_piece() - bytes of a buffer in one of its pages
 * @address: physical address or DMA address
 * @length: bytes
 * @index: page of the buffer, from 0
 * @piece: filled in
 *
 * Return: 0, or -EINVAL if the buffer has fewer pages.
 */
int shim_dma_piece(u64 address, u64 length, u32 index,
		   struct shim_piece *piece);

/**
 * shim_dma_device_reads() - whether the device reads a mapped buffer
 * @direction: enum dma_data_direction
 *
 * Return: 1 if it does, else 0.
 */
u32 shim_dma_device_reads(u32 direction);

/**
 * shim_dma_device_writes() - whether the device writes a mapped buffer
 * @direction: enum dma_data_direction
 *
 * Return: 1 if it does, else 0.
 */
u32 shim_dma_device_writes(u32 direction);

/**
 * shim_bounces() - whether to bounce buffers that share pages with other data
 * @policy: enum shim_bounce_policy
 * @trusted: value of the toolstack's key trusted [3.8]
 * @backend: domain of the backend
 *
 * Return: 1 to bounce, else 0.
 */
u32 shim_bounces(u32 policy, u32 trusted, u16 backend);

/**
 * shim_interrupt_count() - count a message of an interrupt
 * @interrupt: counters of this interrupt
 * @message: enum shim_message
 *
 * Return: enum shim_next.
 */
u32 shim_interrupt_count(struct shim_interrupt *interrupt, u32 message);

/**
 * shim_config_is_news() - whether an EVENT_CONFIG differs from the last one
 * @announced: content of the last one, updated
 * @status: device status in the event
 * @generation: generation in the event
 *
 * Return: 1 if it differs, else 0.
 */
u32 shim_config_is_news(struct shim_announced *announced, u32 status,
			u32 generation);

/**
 * shim_generation_observe() - record a reading of the configuration's generation
 * @generations: history, updated
 * @generation: generation that was read
 * @now: time in milliseconds
 *
 * Return: 1 if the generation has changed at every reading for too long, else 0.
 */
u32 shim_generation_observe(struct shim_generations *generations, u32 generation,
			    u64 now);

/**
 * shim_waits_for_requests() - whether removing the driver waits for requests
 * @device_id: virtio device ID
 *
 * Return: 1 if the driver of such a device waits, else 0.
 */
u32 shim_waits_for_requests(u32 device_id);

/**
 * shim_unmaps_buffers() - whether the driver unmaps buffers that it takes back
 * @device_id: virtio device ID
 *
 * Return: 1 if the driver of such a device does, else 0.
 */
u32 shim_unmaps_buffers(u32 device_id);

/**
 * shim_removal() - decide whether a virtio device can be removed
 * @device_id: virtio device ID
 * @pages: pages of unfinished requests
 * @backend: enum shim_backend_state
 *
 * Return: enum shim_removal.
 */
u32 shim_removal(u32 device_id, u32 pages, u32 backend);

/**
 * shim_traits_size() - bytes of configuration that a driver depends on
 * @device_id: virtio device ID
 *
 * Return: A multiple of 4, at most SHIM_TRAITS_CONFIG.
 */
u32 shim_traits_size(u32 device_id);

/**
 * shim_traits_differ() - whether a driver can go on with another device [2.14]
 * @had: device that the driver is bound to
 * @found: device that it finds after the guest was restored
 *
 * Return: enum shim_difference, the first one that the driver cannot cope with.
 */
u32 shim_traits_differ(const struct shim_traits *had, const struct shim_traits *found);

/**
 * shim_response_wait() - decide how long to wait for a response [5.4]
 * @waited: milliseconds since the request was made
 * @running: whether the driver neither starts, resets nor leaves the device
 * @backend: enum xenbus_state of the backend
 *
 * Return: Milliseconds to wait before the next decision, or 0 to give the device up.
 */
u64 shim_response_wait(u64 waited, u32 running, u32 backend);

/* The pool grows by chunks of SHIM_CHUNK_PAGES pages, up to SHIM_MAX_CHUNKS. */
#define SHIM_CHUNK_PAGES 64
#define SHIM_MAX_CHUNKS 64

/*
 * The location of a buffer in the pool, or of a part of one. The C side keeps notes
 * on each chunk: the original addresses of the buffer's bytes, one for every stride
 * bytes.
 */
struct shim_location {
	u64 address;
	u32 chunk;
	u32 start;	/* byte of the chunk */
	u32 note;	/* the first */
	u32 notes;
	u32 stride;
	u32 offset;	/* of the buffer, from the bytes of the first note */
};

/* The functions below need no lock. */

/**
 * shim_pool_size() - size of a pool's map
 *
 * Return: Bytes to allocate, with the alignment of kmalloc().
 */
size_t shim_pool_size(void);

/**
 * shim_pool_init() - initialise a pool without chunks
 * @pool: shim_pool_size() bytes
 */
void shim_pool_init(struct shim_pool *pool);

/**
 * shim_pool_chunk_limit() - limit of a pool's growth
 * @pages: pages that the user allows
 * @references: grant references that the guest has
 *
 * Return: Maximum number of chunks.
 */
u32 shim_pool_chunk_limit(u32 pages, u32 references);

/**
 * shim_pool_guest_limit() - limit of the growth of all pools of the guest
 * @number: number of the chunk that a pool is to get
 * @references: grant references that the guest has
 *
 * Return: Maximum number of chunks in all pools, this one included.
 */
u32 shim_pool_guest_limit(u32 number, u32 references);

/**
 * shim_pool_grown() - size to which a pool grows
 * @chunks: number of chunks that the pool has
 * @missing: pages of the buffers that did not fit
 * @limit: maximum number of chunks
 *
 * Return: Number of chunks.
 */
u32 shim_pool_grown(u32 chunks, u32 missing, u32 limit);

/**
 * shim_pressure_waits() - whether a request waits for space in a full pool
 * @admission: of the request's queue, updated
 * @device_id: virtio device ID
 * @in_flight: requests of the queue that are in flight
 * @added: requests that were added to the queue so far, modulo 65536
 * @now: time in milliseconds
 *
 * Return: 1 if the mapping of a buffer is to fail, 0 if the buffer is to be granted.
 */
u32 shim_pressure_waits(struct shim_admission *admission, u32 device_id,
			u32 in_flight, u16 added, u32 now);

/**
 * shim_pool_set_chunks() - set how many chunks buffers may use
 * @pool: pool
 * @chunks: number of chunks, from the first on
 */
void shim_pool_set_chunks(const struct shim_pool *pool, u32 chunks);

/**
 * shim_pool_take_touched() - chunks that were used
 * @pool: pool
 *
 * Return: A bit for each chunk of which buffers took pages since the last call.
 */
u64 shim_pool_take_touched(const struct shim_pool *pool);

/**
 * shim_pool_kept() - size to which a pool shrinks
 * @touched: a bit for each chunk that was used lately
 * @least: minimum number of chunks
 *
 * Return: Number of chunks.
 */
u32 shim_pool_kept(u64 touched, u32 least);

/**
 * shim_pool_retire_last() - close the last open chunk, if no buffer is in it
 * @pool: pool
 *
 * The caller serialises this with shim_pool_set_chunks().
 *
 * Return: 1 if the chunk is closed, 0 if there are buffers or slots in it.
 */
u32 shim_pool_retire_last(const struct shim_pool *pool);

/**
 * shim_pool_restore() - make a chunk ready for shim_pool_set_chunks()
 * @pool: pool
 * @number: number of the chunk, retired or not
 */
void shim_pool_restore(const struct shim_pool *pool, u32 number);

/**
 * shim_pool_chunks() - number of chunks that buffers may use
 * @pool: pool
 *
 * Return: Number of chunks.
 */
u32 shim_pool_chunks(const struct shim_pool *pool);

/**
 * shim_pool_in_use() - pages in use by buffers
 * @pool: pool
 *
 * Return: Number of pages.
 */
u32 shim_pool_in_use(const struct shim_pool *pool);

/**
 * shim_pool_notes() - notes to keep on a chunk
 * @chunk: number of the chunk
 *
 * Return: Number of notes.
 */
u32 shim_pool_notes(u32 chunk);

/**
 * shim_pool_take() - allocate space for a buffer
 * @pool: pool
 * @length: bytes
 * @processor: current processor, or a recent one
 * @location: filled in
 *
 * Return: 0, -EINVAL if the pool does not take such a buffer, -ENOSPC if the pool
 * is full.
 */
int shim_pool_take(const struct shim_pool *pool, u64 length, u32 processor,
		   struct shim_location *location);

/**
 * shim_pool_give_back() - free the space of a buffer
 * @pool: pool
 * @address: DMA address
 * @length: bytes
 *
 * Return: 0, or -EINVAL if the space was not allocated.
 */
int shim_pool_give_back(const struct shim_pool *pool, u64 address, u64 length);

/**
 * shim_pool_find() - locate a buffer in the pool, or a part of one
 * @address: DMA address
 * @length: bytes
 * @location: filled in
 *
 * Return: 0, or -EINVAL if @address is not in the pool.
 */
int shim_pool_find(u64 address, u64 length, struct shim_location *location);

/* A split ring in the driver's memory (virtio 1.2, section 2.7). */
struct shim_split_ring {
	const void *descriptors;
	const void *available;
	const void *used;
	u32 entries;
};

/**
 * shim_unfinished_size() - size of what is noted of a queue
 *
 * Return: Number of bytes.
 */
size_t shim_unfinished_size(void);

/**
 * shim_unfinished_init() - begin to note the requests of a queue
 * @unfinished: shim_unfinished_size() bytes
 * @entries: entries of the queue, which was just made
 *
 * Return: 0, or -EINVAL if there are too many entries.
 */
int shim_unfinished_init(struct shim_unfinished *unfinished, u32 entries);

/**
 * shim_unfinished_unmapped() - note that the driver unmaps a buffer
 * @unfinished: what is noted of a queue
 * @ring: its ring
 * @address: DMA address of the buffer
 *
 * The caller holds a lock for all calls with the same queue.
 *
 * Return: 1 if the driver takes a request of this queue back, else 0.
 */
u32 shim_unfinished_unmapped(struct shim_unfinished *unfinished,
			     const struct shim_split_ring *ring, u64 address);

/**
 * shim_unfinished_list_again() - have the next device do unfinished requests again
 * @unfinished: what is noted of a queue
 * @ring: its ring, which neither the driver nor a device uses
 *
 * Return: Number of requests, or -EIO if the device has written the ring wrongly.
 */
int shim_unfinished_list_again(struct shim_unfinished *unfinished,
			       const struct shim_split_ring *ring);

#endif /* SHIM_H */
