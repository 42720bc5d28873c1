// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * The size of the pool. It begins with a few chunks, grows by the buffers that found
 * it full, and gives chunks back that no buffer has used for a while. While the device
 * does not answer, which may be long, buffers that do not fit are granted.
 */
#include <uapi/linux/virtio_ids.h>

#include "virtio_msg_xen.h"

/* A pool that could not grow is tried again after this time. */
#define GROW_RETRY (10 * HZ)

/* A chunk is given back after one to two such times without use. */
#define SHRINK_INTERVAL (10 * HZ)

/*
 * The least number of chunks, which are shared at the start. A network driver fills
 * its receive queue of 256 entries, with a page each, before the pool can grow.
 */
static u32 xvm_resize_least(const struct xvm_device *xvm)
{
	u32 device = xvm->virtio->vdev.id.device;

	return device == VIRTIO_ID_NET ? 1 + 256 / SHIM_CHUNK_PAGES : 1;
}

/*
 * Under the pool's mutex. Returns false on failure. Then the pool does not grow for a
 * while: memory, references or the backend's budget may be short only now. Other pools
 * of the guest that are in the way may get smaller at any time.
 */
static bool xvm_resize_add_chunk(struct xvm_device *xvm)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	u32 number = shim_pool_chunks(pool->map);
	int err;

	if (number >= pool->limit)
		return false;
	err = xvm_chunk_share(xvm, number);
	if (!err) {
		shim_pool_restore(pool->map, number);
		shim_pool_set_chunks(pool->map, number + 1);
		return true;
	}
	if (err == -EDQUOT || err == -ENOSPC)
		return false;
	WRITE_ONCE(pool->grow_after, get_jiffies_64() + GROW_RETRY);
	dev_info_ratelimited(&xvm->xdev->dev, "the pool stays at %u pages for now (%d)\n",
			     number * SHIM_CHUNK_PAGES, err);
	return false;
}

/* Under the pool's mutex. */
static bool xvm_resize_remove_chunk(struct xvm_device *xvm)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	struct xvm_chunk *chunk;
	u32 number;

	if (!shim_pool_retire_last(pool->map))
		return false;
	number = shim_pool_chunks(pool->map);
	chunk = pool->chunks[number];
	if (xvm_chunk_unshare(xvm, chunk, number)) {
		shim_pool_restore(pool->map, number);
		shim_pool_set_chunks(pool->map, number + 1);
		return false;
	}
	pool->chunks[number] = NULL;
	xvm_chunk_free(chunk);
	return true;
}

/* Looks at the pool again later, if the backend can give pages back. */
static void xvm_resize_look_later(struct xvm_device *xvm)
{
	if (xvm->bus.unshare)
		queue_delayed_work(system_long_wq, &xvm->dma.pool.shrink, SHRINK_INTERVAL);
}

/* Under the pool's mutex. */
static void xvm_resize_add_missing(struct xvm_device *xvm)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	u32 before = shim_pool_chunks(pool->map);
	u32 grown = shim_pool_grown(before, atomic_read(&pool->missing), pool->limit);
	u32 chunks = before;

	while (chunks < grown && xvm_resize_add_chunk(xvm))
		chunks++;
	if (chunks > before) {
		WRITE_ONCE(pool->growths, pool->growths + 1);
		xvm_resize_look_later(xvm);
	}
	/* Buffers that were granted while the pool grew may fit now. */
	atomic_set(&pool->missing, 0);
}

static void xvm_resize_grow_work(struct work_struct *work)
{
	struct xvm_device *xvm = container_of(work, struct xvm_device,
					      dma.pool.grow);
	struct xvm_pool *pool = &xvm->dma.pool;

	/* If the pool is busy, perhaps waiting for the device, a later buffer asks again. */
	if (!mutex_trylock(&pool->lock))
		return;
	if (pool->running && atomic_read(&pool->missing))
		xvm_resize_add_missing(xvm);
	mutex_unlock(&pool->lock);
}

/* Under the pool's mutex. */
static void xvm_resize_remove_unused(struct xvm_device *xvm)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	u64 touched = shim_pool_take_touched(pool->map);
	u64 lately = touched | pool->touched;
	u32 least = xvm_resize_least(xvm);
	u32 kept = shim_pool_kept(lately, least);

	pool->touched = touched;
	while (shim_pool_chunks(pool->map) > kept && xvm_resize_remove_chunk(xvm))
		;
	/* An idle guest is not woken again, even if buffers keep the pool large. */
	if (lately && shim_pool_chunks(pool->map) > least)
		xvm_resize_look_later(xvm);
}

static void xvm_resize_shrink_work(struct work_struct *work)
{
	struct xvm_device *xvm = container_of(to_delayed_work(work), struct xvm_device,
					      dma.pool.shrink);
	struct xvm_pool *pool = &xvm->dma.pool;

	if (!mutex_trylock(&pool->lock)) {
		xvm_resize_look_later(xvm);
		return;
	}
	if (pool->running)
		xvm_resize_remove_unused(xvm);
	mutex_unlock(&pool->lock);
}

/**
 * xvm_resize_init() - prepare a device for the functions below
 * @xvm: device
 */
void xvm_resize_init(struct xvm_device *xvm)
{
	INIT_WORK(&xvm->dma.pool.grow, xvm_resize_grow_work);
	INIT_DELAYED_WORK(&xvm->dma.pool.shrink, xvm_resize_shrink_work);
}

/**
 * xvm_resize_start() - share the first chunks with the device
 * @xvm: device whose pool has no chunks
 *
 * Context: Process context, under the pool's mutex. Waits for the device.
 */
void xvm_resize_start(struct xvm_device *xvm)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	u32 left = xvm_resize_least(xvm);

	atomic_set(&pool->missing, 0);
	pool->touched = 0;
	WRITE_ONCE(pool->grow_after, 0);
	while (left-- && xvm_resize_add_chunk(xvm))
		;
}

/**
 * xvm_resize_is_possible() - whether a pool may grow
 * @xvm: device with a pool
 *
 * Return: false if the pool is at its limit, or all pools of the guest at theirs, or
 * if it could not grow a short while ago.
 * Context: Any context.
 */
bool xvm_resize_is_possible(const struct xvm_device *xvm)
{
	const struct xvm_pool *pool = &xvm->dma.pool;
	u32 chunks = shim_pool_chunks(pool->map);

	return READ_ONCE(pool->running) && chunks < READ_ONCE(pool->limit) &&
	       time_after_eq64(get_jiffies_64(), READ_ONCE(pool->grow_after)) &&
	       xvm_chunk_is_possible(xvm, chunks);
}

/**
 * xvm_resize_grow() - have the pool grow soon
 * @xvm: device with a pool
 * @pages: pages of a buffer that did not fit
 *
 * Context: Any context.
 */
void xvm_resize_grow(struct xvm_device *xvm, u32 pages)
{
	struct xvm_pool *pool = &xvm->dma.pool;

	atomic_add(pages, &pool->missing);
	queue_work(system_long_wq, &pool->grow);
}

/**
 * xvm_resize_cancel() - wait until no chunk is added or removed
 * @xvm: device whose pool is stopped
 *
 * Context: Process context. Sleeps.
 */
void xvm_resize_cancel(struct xvm_device *xvm)
{
	cancel_work_sync(&xvm->dma.pool.grow);
	cancel_delayed_work_sync(&xvm->dma.pool.shrink);
}
