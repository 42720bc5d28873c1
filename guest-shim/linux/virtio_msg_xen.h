/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/*
 * virtio-msg over Xen, driver side: declarations that the files of the module share.
 *
 * A file calls only functions of files that are declared above it here; main.c,
 * which is last, calls all others and passes callbacks down to two of them.
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
#include <linux/notifier.h>
#include <linux/spinlock.h>
#include <linux/virtio.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <xen/events.h>
#include <xen/grant_table.h>
#include <xen/xenbus.h>

#include "compat.h"
#include "shim.h"

struct gendisk;
struct xvm_device;

/* The message page, its event channel and the request in progress. */
struct xvm_bus {
	void *page;
	grant_ref_t gref;
	evtchn_port_t port;
	evtchn_port_t reserved;		/* becomes port at the next open; 0: none */
	unsigned int irq;		/* 0: not open */
	u32 max_config;			/* bytes of configuration in a message */
	bool shared_pool;		/* the backend offers a pool */
	bool unshare;			/* the backend gives pages of it back */
	bool movable;			/* a backend in another domain can go on */
	struct mutex exchange;		/* one request at a time [5.4] */
	bool driver_ok;			/* DRIVER_OK was set since the last reset */
	bool running;			/* the driver is bound: requests may wait long */
	wait_queue_head_t wait;		/* for an answer, or for a free slot */
	struct work_struct drain;	/* continues after the interrupt */
	bool (*used)(struct xvm_device *xvm, unsigned int index); /* handles EVENT_USED */

	spinlock_t lock;		/* protects the fields below; ready and queues */
	struct shim_transport *transport;
	struct shim_announced announced;
	struct shim_generations generations;
	bool broken;			/* requests and events fail */
	bool config_changed;		/* while the virtio device was not ready */
};

/* Pages granted in place of pages that a buffer fills only in part. */
struct xvm_bounce {
	struct page **pages;		/* by grant reference; NULL: no bouncing */
	mempool_t *reserve;
	atomic_t held;			/* bounce pages allocated */
	spinlock_t lock;		/* keeps a page while it is copied */
};

/* The side that may use a mapped buffer. */
enum xvm_owner {
	XVM_DRIVER,
	XVM_BACKEND,
};

/* Pages of the pool that are granted and shared together. */
struct xvm_chunk {
	void *memory;
	grant_ref_t first;
	bool granted;
	phys_addr_t original[];		/* addresses of the bytes that it holds copies of */
};

/* Pages that the device keeps mapped; buffers are copied to them [3.10]. */
struct xvm_pool {
	struct shim_pool *map;		/* pages in use; NULL: no pool */
	struct xvm_chunk *chunks[SHIM_MAX_CHUNKS];
	unsigned int limit;		/* maximum number of chunks */
	u64 grow_after;			/* in jiffies: earliest growth */
	bool running;			/* between start and reset */
	struct mutex lock;		/* serialises sharing, stopping and closing */
	spinlock_t map_lock;		/* keeps map while its usage is read */
	struct work_struct grow;
	struct delayed_work shrink;	/* pending while the pool may be too large */
	u64 touched;			/* chunks used before the last look, a bit each */
	unsigned int growths;		/* times that it grew */
	atomic_t missing;		/* pages that did not fit since it grew */
	atomic_t fallbacks;		/* buffers that were granted instead */
	atomic_t retries;		/* buffers whose driver had to try again */
};

/* A reading of the pool. */
struct xvm_pool_usage {
	unsigned int shared;		/* pages */
	unsigned int in_use;		/* pages */
	unsigned int fallbacks;		/* buffers that were granted instead */
	unsigned int retries;		/* buffers whose driver had to try again */
	unsigned int growths;		/* times that the pool grew */
};

/* The page of a grant, for a grant that may move to another domain. */
struct xvm_frame {
	unsigned long number;
	bool read_only;
};

/* The grants that the DMA API made for the device. */
struct xvm_dma {
	unsigned long *live;		/* bitmap of the references that are granted */
	unsigned long *reserved;	/* bitmap of the references of rings to grant */
	unsigned int references;	/* bits in each */
	struct xvm_frame *frames;	/* by reference; NULL: grants do not move */
	spinlock_t frames_lock;		/* protects frames, and the backend's domain */
	atomic_t granted;		/* bits set in live */
	atomic_t mapped_pages;	/* pages of mapped buffers outside the pool */
	struct xvm_bounce bounce;
	struct xvm_pool pool;
};

struct xvm_queue {
	struct virtqueue *vq;
	unsigned int index;
	unsigned int irq;		/* 0: no doorbell, events are messages */
	u16 used;			/* used index at the last event */
	struct shim_admission admission;	/* of requests to a full pool */
	struct shim_unfinished *unfinished;	/* requests; NULL: not noted */
};

/* The virtio device. Its release function frees this. */
struct xvm_virtio {
	struct virtio_device vdev;
	struct xvm_device *xvm;
};

/* One device: a frontend and its backend. */
struct xvm_device {
	struct xenbus_device *xdev;
	struct xvm_watch *watch;	/* on the backend's state */
	void (*watch_changed)(struct xvm_device *xvm);	/* its callback */
	struct list_head watched;	/* in the list of the watch */
	char *backend_path;		/* path that is watched */
	enum xenbus_state backend;	/* state that the watch last read */
	wait_queue_head_t backend_changed;
	struct work_struct step;	/* changes the state, one step at a time */
	struct work_struct fault;	/* notifies the virtio core of a failure */
	struct list_head starting;	/* in the list of devices that are starting */
	struct mutex beginning;		/* protects begun and removing */
	bool begun;			/* Initialising was entered */
	bool removing;			/* no more steps, no long waits */
	bool restored;			/* the guest was restored: start again */
	bool freezing;			/* the driver is being frozen */
	bool frozen;			/* the driver waits; under the virtio device's lock */
	bool reconnecting;		/* frozen, and the connection is lost */
	bool kept;			/* the backend's domain is gone, and the driver waits */
	bool parted;			/* and the connection to it is undone */
	bool overdue;			/* and no other backend came in time */
	bool again;			/* and the frontend starts anew with this one */
	unsigned long not_before;	/* in jiffies: earliest time of that */
	unsigned long kept_until;	/* in jiffies */
	struct delayed_work keeping;	/* looks for another backend, and at the time */
	struct workqueue_struct *steps;	/* runs step */
	struct list_head movable;	/* in the list of devices that may wait */
	struct list_head paths;		/* of earlier backends */
	struct gendisk *held;		/* disk whose requests wait meanwhile */
	bool restoring;			/* the driver is told what it was told before */
	bool dead;			/* the driver goes on without a device */
	u8 dead_status;			/* that the driver has set then */
	struct shim_traits traits;	/* what the driver knows of the device */
	struct list_head suspending;	/* in the list of devices that suspends wait for */
	bool asked;			/* a suspend waits for the device's answer */
	bool ready;			/* the virtio device is registered */
	bool stuck;			/* the virtio device can never be unregistered */
	struct notifier_block driver_events;	/* of the virtio bus */
	struct xvm_bus bus;
	bool grant_in_use;		/* a grant still in use was reported [3.6] */
	struct xvm_dma dma;
	struct xvm_virtio *virtio;
	struct xvm_queue *queues;
	unsigned int nr_queues;
	unsigned int __percpu *notified;	/* queue by processor, plus 1; 0: none */
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

/* fault.c */
void xvm_fault_init(struct xvm_device *xvm);
void xvm_fail(struct xvm_device *xvm, const char *why);
bool xvm_check_status(struct xvm_device *xvm, u32 status);

/* disk.c */
struct gendisk *xvm_disk_find(struct xvm_device *xvm);

/* interface.c */
void xvm_interface_stop(struct xvm_device *xvm);

/* stray.c */
void xvm_stray_remove(struct xvm_device *xvm);

/* detach.c */
bool xvm_detach_concerns(const char *key);
bool xvm_detach_allowed(struct xvm_device *xvm);

/* watch.c */
void xvm_watch_init(struct xvm_device *xvm,
		    void (*changed)(struct xvm_device *xvm));
int xvm_watch_enter(struct xvm_device *xvm);
void xvm_watch_leave(struct xvm_device *xvm);
int xvm_watch_remind(void);
void xvm_watch_exit(void);

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
void xvm_bus_set_broken(struct xvm_device *xvm, bool broken);
int xvm_bus_request(struct xvm_device *xvm, const struct shim_request *request,
		    struct shim_answer *answer, void *data, u32 capacity);
void xvm_bus_set_running(struct xvm_device *xvm, bool running);
bool xvm_bus_avail(struct xvm_device *xvm, unsigned int index);
int xvm_bus_alloc_evtchn(struct xvm_device *xvm, evtchn_port_t *port);
void xvm_bus_quiesce(struct xvm_device *xvm);
u64 xvm_bus_dropped(struct xvm_device *xvm);

/* grant.c */
void xvm_grant_page(struct xvm_device *xvm, grant_ref_t ref,
		    unsigned long frame, bool read_only);
bool xvm_grant_end(struct xvm_device *xvm, grant_ref_t ref, struct page *page);

/* unfinished.c */
extern unsigned int xvm_reconnect_seconds;
void xvm_unfinished_open(struct xvm_device *xvm, struct xvm_queue *queue);
void xvm_unfinished_close(struct xvm_device *xvm, struct xvm_queue *queue);
void xvm_unfinished_unmapped(struct xvm_device *xvm, dma_addr_t address);
bool xvm_unfinished_are_known(const struct xvm_device *xvm);
int xvm_unfinished_list_again(struct xvm_device *xvm);

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
bool xvm_chunk_is_possible(const struct xvm_device *xvm, u32 number);
int xvm_chunk_share(struct xvm_device *xvm, u32 number);
int xvm_chunk_move(struct xvm_device *xvm, struct xvm_chunk *chunk);
int xvm_chunk_share_again(struct xvm_device *xvm, u32 number);
int xvm_chunk_unshare(struct xvm_device *xvm, struct xvm_chunk *chunk, u32 number);
void xvm_chunk_revoke(struct xvm_device *xvm, struct xvm_chunk *chunk);
void xvm_chunk_free(struct xvm_chunk *chunk);

/* resize.c */
void xvm_resize_init(struct xvm_device *xvm);
void xvm_resize_start(struct xvm_device *xvm);
bool xvm_resize_is_possible(const struct xvm_device *xvm);
void xvm_resize_grow(struct xvm_device *xvm, u32 pages);
void xvm_resize_cancel(struct xvm_device *xvm);

/* pressure.c */
int xvm_pressure_open(struct xvm_device *xvm);
void xvm_pressure_close(struct xvm_device *xvm);
void xvm_pressure_notified(struct xvm_device *xvm, const struct xvm_queue *queue);
bool xvm_pressure_waits(struct xvm_device *xvm);

/* pool.c */
void xvm_pool_init(struct xvm_device *xvm);
int xvm_pool_open(struct xvm_device *xvm);
void xvm_pool_start(struct xvm_device *xvm);
void xvm_pool_stop(struct xvm_device *xvm);
void xvm_pool_pause(struct xvm_device *xvm);
int xvm_pool_move(struct xvm_device *xvm);
int xvm_pool_share_again(struct xvm_device *xvm);
void xvm_pool_revoke(struct xvm_device *xvm);
void xvm_pool_close(struct xvm_device *xvm);
int xvm_pool_map(struct xvm_device *xvm, phys_addr_t phys, size_t size,
		 enum dma_data_direction dir, unsigned long attrs,
		 dma_addr_t *address);
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
void xvm_dma_set_domain(struct xvm_device *xvm, domid_t domain);
int xvm_dma_move(struct xvm_device *xvm);
void xvm_dma_revoke_all(struct xvm_device *xvm);
void xvm_dma_close(struct xvm_device *xvm);
unsigned int xvm_dma_mapped_pages(const struct xvm_device *xvm);
unsigned int xvm_dma_outstanding(struct xvm_device *xvm);

/* queue.c */
void xvm_del_vqs(struct virtio_device *vdev);
void xvm_synchronize_cbs(struct virtio_device *vdev);
void xvm_disconnect_vqs(struct xvm_device *xvm);
int xvm_connect_vqs(struct xvm_device *xvm);
void xvm_notify_vqs(struct xvm_device *xvm);
int xvm_disable_vq(struct virtqueue *vq);
int xvm_enable_vq(struct virtqueue *vq);
bool xvm_queue_used(struct xvm_device *xvm, unsigned int index);

/* config.c */
extern const struct virtio_config_ops xvm_config_ops;
bool xvm_config_read(struct virtio_device *vdev, unsigned int offset, void *buf,
		     unsigned int len);

/* traits.c */
void xvm_traits_note(struct xvm_device *xvm);
int xvm_traits_fit(struct xvm_device *xvm, struct shim_traits *found, bool any_address);
void xvm_traits_announce(struct xvm_device *xvm, const struct shim_traits *found);

/* suspend.c */
extern const struct device_type xvm_virtio_type;
int xvm_suspend_go_on(struct xvm_device *xvm);
void xvm_suspend_give_up(struct xvm_device *xvm);
void xvm_suspend_enter(struct xvm_device *xvm);
void xvm_suspend_leave(struct xvm_device *xvm);
int xvm_suspend_init(void);
void xvm_suspend_exit(void);

/* reconnect.c */
void xvm_reconnect_enter(struct xvm_device *xvm, struct workqueue_struct *steps);
void xvm_reconnect_leave(struct xvm_device *xvm);
void xvm_reconnect_announce(struct xvm_device *xvm);
bool xvm_reconnect_is_possible(struct xvm_device *xvm);
bool xvm_reconnect_begin(struct xvm_device *xvm);
bool xvm_reconnect_is_offered(struct xvm_device *xvm, enum xenbus_state backend);
bool xvm_reconnect_waits(struct xvm_device *xvm);
int xvm_reconnect_go_on(struct xvm_device *xvm);
void xvm_reconnect_give_up(struct xvm_device *xvm);
int xvm_reconnect_init(void);
void xvm_reconnect_exit(void);

/* sysfs.c */
extern const struct attribute_group *xvm_groups[];

#endif /* VIRTIO_MSG_XEN_H */
