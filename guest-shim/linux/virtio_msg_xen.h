/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/*
 * virtio-msg over Xen, driver side: what the files of the module share.
 *
 * [n.m] in a comment is a clause of guest-shim/protocol/SPEC.md.
 */
#ifndef VIRTIO_MSG_XEN_H
#define VIRTIO_MSG_XEN_H

#include <linux/atomic.h>
#include <linux/dma-direction.h>
#include <linux/list.h>
#include <linux/mempool.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/virtio.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <xen/events.h>
#include <xen/grant_table.h>
#include <xen/xenbus.h>

#include "compat.h"
#include "shim.h"

struct xvm_device;

/* The message page, its event channel and the one exchange on it. */
struct xvm_bus {
	void *page;
	grant_ref_t gref;
	evtchn_port_t port;
	evtchn_port_t reserved;		/* for the next port; 0: none */
	unsigned int irq;		/* 0: not open */
	u32 max_config;			/* bytes of configuration in a message */
	bool shared_pool;		/* the backend offers it */
	struct mutex exchange;		/* one request at a time [5.4] */
	wait_queue_head_t wait;		/* for an answer, or for room */
	struct work_struct drain;	/* goes on where the interrupt stopped */
	bool (*used)(struct xvm_device *xvm, unsigned int index); /* for EVENT_USED */

	spinlock_t lock;		/* these; ready and queues of the device */
	struct shim_transport *transport;
	struct shim_announced announced;
	struct shim_generations generations;
	bool broken;			/* no request, no event any more */
	bool config_changed;		/* while nobody could be told */
};

/* Pages granted in place of those that buffers do not fill. */
struct xvm_bounce {
	struct page **pages;		/* by grant; NULL: nothing is bounced */
	mempool_t *reserve;
	atomic_t held;			/* bounce pages there are */
	spinlock_t lock;		/* a page is not freed while it is copied */
};

/* Who may use a mapped buffer. */
enum xvm_owner {
	XVM_DRIVER,
	XVM_BACKEND,
};

/* Pages that were granted together and shared with one message. */
struct xvm_chunk {
	void *memory;
	grant_ref_t first;
	bool granted;
	phys_addr_t original[];		/* where its bytes come from, or go to */
};

/* Pages that the device keeps mapped, for buffers to be copied to [3.10]. */
struct xvm_pool {
	struct shim_pool *map;		/* which are taken; NULL: no pool */
	struct xvm_chunk *chunks[SHIM_MAX_CHUNKS];
	unsigned int limit;		/* chunks that there may be */
	bool running;			/* between start and reset */
	struct mutex lock;		/* sharing and what ends it */
	struct work_struct grow;
	atomic_t fallbacks;		/* buffers that were granted instead */
};

/* A reading of the pool, in pages; fallbacks counts buffers. */
struct xvm_pool_usage {
	unsigned int shared;
	unsigned int in_use;
	unsigned int fallbacks;		/* buffers that were granted instead */
};

/* The grants that the DMA API holds for the device. */
struct xvm_dma {
	unsigned long *live;		/* a bit for each reference granted */
	unsigned long *reserved;	/* a bit for each to be granted */
	unsigned int references;	/* bits in each */
	atomic_t granted;		/* bits set in live */
	atomic_t requests;		/* pages of buffers that are mapped */
	struct xvm_bounce bounce;
	struct xvm_pool pool;
};

struct xvm_queue {
	struct virtqueue *vq;
	unsigned int index;
	unsigned int irq;		/* 0: no doorbell, events go in band */
	u16 used;			/* the used index at the last event */
};

/* Freed when the last reference to the virtio device is gone. */
struct xvm_virtio {
	struct virtio_device vdev;
	struct xvm_device *xvm;
};

/* One frontend/backend pair. */
struct xvm_device {
	struct xenbus_device *xdev;
	struct xvm_watch *watch;	/* on the backend's state */
	void (*watch_changed)(struct xvm_device *xvm);	/* its callback */
	struct list_head watched;	/* among those that share it */
	char *backend_path;		/* as it is watched */
	enum xenbus_state backend;	/* as the watch last saw it */
	wait_queue_head_t backend_changed;
	struct work_struct step;	/* changes of state, one at a time */
	struct work_struct fault;	/* tells the virtio core of a failure */
	struct list_head starting;		/* among those that are starting */
	struct mutex beginning;		/* these, while the watch uses them */
	bool begun;			/* Initialising was entered */
	bool removing;			/* no more steps */
	bool restored;			/* the connection was another guest's */
	bool ready;			/* the virtio device is registered */
	bool stuck;			/* it can never be unregistered */
	wait_queue_head_t finished;	/* for requests, before a suspend */
	struct xvm_bus bus;
	bool grant_in_use;		/* [3.6] was reported */
	struct xvm_dma dma;
	struct xvm_virtio *virtio;
	struct xvm_queue *queues;	/* those of the virtio device */
	unsigned int nr_queues;
};

static inline struct xvm_device *vdev_to_xvm(struct virtio_device *vdev)
{
	return container_of(vdev, struct xvm_virtio, vdev)->xvm;
}

/* debug.c, in the build for tests alone */
enum xvm_debug_mode {
	XVM_DEBUG_NONE,
	XVM_DEBUG_RAW_ADDRESSES,
	XVM_DEBUG_NO_ACCESS_PLATFORM,
	XVM_DEBUG_BYPASS,
};

#ifdef XVM_TEST
int xvm_debug_init(void);
bool xvm_debug(enum xvm_debug_mode asked);
#else
static inline int xvm_debug_init(void)
{
	return 0;
}

static inline bool xvm_debug(enum xvm_debug_mode asked)
{
	return false;
}
#endif

/* watch.c */
void xvm_watch_init(struct xvm_device *xvm,
		    void (*changed)(struct xvm_device *xvm));
int xvm_watch_enter(struct xvm_device *xvm);
void xvm_watch_leave(struct xvm_device *xvm);
int xvm_watch_remind(void);
void xvm_watch_exit(void);

/* fault.c */
void xvm_fault_init(struct xvm_device *xvm);
void xvm_fail(struct xvm_device *xvm, const char *why);
bool xvm_check_status(struct xvm_device *xvm, u32 status);

/* probe_order.c */
void xvm_probe_order_init(struct xvm_device *xvm);
void xvm_probe_order_enter(struct xvm_device *xvm);
void xvm_probe_order_leave(struct xvm_device *xvm);
void xvm_probe_order_wait(struct xvm_device *xvm);
void xvm_probe_order_all_found(void);
void xvm_probe_order_wait_all_found(void);

/* bus.c */
void xvm_bus_init(struct xvm_device *xvm,
		  bool (*used)(struct xvm_device *xvm, unsigned int index));
void xvm_bus_reserve(struct xvm_device *xvm);
void xvm_bus_unreserve(struct xvm_device *xvm);
int xvm_bus_open(struct xvm_device *xvm,
		 const struct shim_negotiated *negotiated);
void xvm_bus_close(struct xvm_device *xvm);
int xvm_bus_request(struct xvm_device *xvm, const struct shim_request *request,
		    struct shim_answer *answer, void *data, u32 room);
bool xvm_bus_avail(struct xvm_device *xvm, unsigned int index);
int xvm_bus_alloc_evtchn(struct xvm_device *xvm, evtchn_port_t *port);
void xvm_bus_quiesce(struct xvm_device *xvm);
u64 xvm_bus_dropped(struct xvm_device *xvm);

/* config.c */
extern const struct virtio_config_ops xvm_config_ops;

/* queue.c */
void xvm_del_vqs(struct virtio_device *vdev);
void xvm_synchronize_cbs(struct virtio_device *vdev);
int xvm_disable_vq(struct virtqueue *vq);
int xvm_enable_vq(struct virtqueue *vq);
bool xvm_queue_used(struct xvm_device *xvm, unsigned int index);

/* grant.c */
void xvm_grant_page(struct xvm_device *xvm, grant_ref_t ref,
		    unsigned long frame, bool read_only);
bool xvm_grant_end(struct xvm_device *xvm, grant_ref_t ref, struct page *page);

/* bounce.c */
int xvm_bounce_init(void);
int xvm_bounce_open(struct xvm_device *xvm);
void xvm_bounce_close(struct xvm_device *xvm);
int xvm_bounce_map(struct xvm_device *xvm, grant_ref_t first, phys_addr_t phys,
		   size_t size);
struct page *xvm_bounce_take(struct xvm_device *xvm, grant_ref_t ref);
void xvm_bounce_free(struct xvm_device *xvm, struct page *page);
void xvm_bounce_sync(struct xvm_device *xvm, dma_addr_t address, size_t size,
		     enum dma_data_direction dir, enum xvm_owner owner);

/* chunk.c */
int xvm_chunk_share(struct xvm_device *xvm, u32 number);
void xvm_chunk_revoke(struct xvm_device *xvm, struct xvm_chunk *chunk);
void xvm_chunk_free(struct xvm_chunk *chunk);

/* pool.c */
void xvm_pool_init(struct xvm_device *xvm);
int xvm_pool_open(struct xvm_device *xvm);
void xvm_pool_start(struct xvm_device *xvm);
void xvm_pool_stop(struct xvm_device *xvm);
void xvm_pool_revoke(struct xvm_device *xvm);
void xvm_pool_close(struct xvm_device *xvm);
dma_addr_t xvm_pool_map(struct xvm_device *xvm, phys_addr_t phys, size_t size,
			enum dma_data_direction dir, unsigned long attrs);
bool xvm_pool_unmap(struct xvm_device *xvm, dma_addr_t address, size_t size,
		    enum dma_data_direction dir, unsigned long attrs);
bool xvm_pool_sync(struct xvm_device *xvm, dma_addr_t address, size_t size,
		   enum dma_data_direction dir, enum xvm_owner owner);
unsigned int xvm_pool_pages(const struct xvm_device *xvm);
unsigned int xvm_pool_shared(struct xvm_device *xvm);
unsigned int xvm_pool_in_use(const struct xvm_device *xvm);
void xvm_pool_usage(struct xvm_device *xvm, struct xvm_pool_usage *usage);

/* dma.c */
int xvm_dma_open(struct xvm_device *xvm);
int xvm_dma_grant_ring(struct xvm_device *xvm, struct virtqueue *vq);
void xvm_dma_revoke_all(struct xvm_device *xvm);
void xvm_dma_close(struct xvm_device *xvm);
unsigned int xvm_dma_requests(const struct xvm_device *xvm);
unsigned int xvm_dma_outstanding(struct xvm_device *xvm);

/* sysfs.c */
extern const struct attribute_group *xvm_groups[];

#endif /* VIRTIO_MSG_XEN_H */
