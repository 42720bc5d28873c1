// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * The shared pool [3.10, 3.11]: pages that are granted once and that the device
 * keeps mapped (chunk.c). A buffer is copied to a place there that is taken for
 * it, or out of it, so that no request needs a grant.
 *
 * What is taken is for the core to say, without a lock. The pool grows while it
 * proves too small, and what finds no room in it is granted as if there were no
 * pool (dma.c).
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <uapi/linux/virtio_ids.h>
#include <xen/page.h>

#include "virtio_msg_xen.h"

static unsigned int xvm_pool_max_pages = 2048;
module_param_named(pool, xvm_pool_max_pages, uint, 0444);
MODULE_PARM_DESC(pool, "Pages of 4 KiB that a device may keep mapped, in steps of 64; 0: buffers are granted one by one");

/* Under the pool's lock. If it fails, the pool stays as it is. */
static void xvm_pool_add_chunk(struct xvm_device *xvm)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	u32 number = shim_pool_chunks(pool->map);
	int err;

	if (number >= pool->limit)
		return;
	err = xvm_chunk_share(xvm, number);
	if (!err) {
		shim_pool_open(pool->map, number + 1);
		return;
	}
	WRITE_ONCE(pool->limit, number);
	dev_info(&xvm->xdev->dev, "the pool stays at %u pages (%d)\n",
		 xvm_pool_pages(xvm), err);
}

static void xvm_pool_grow(struct work_struct *work)
{
	struct xvm_device *xvm = container_of(work, struct xvm_device,
					      dma.pool.grow);
	struct xvm_pool *pool = &xvm->dma.pool;
	u32 more = 0;

	mutex_lock(&pool->lock);
	/* By half as much again: what falls back meanwhile is dear. */
	if (pool->running)
		more = 1 + shim_pool_chunks(pool->map) / 2;
	for (; more; more--)
		xvm_pool_add_chunk(xvm);
	mutex_unlock(&pool->lock);
}

void xvm_pool_init(struct xvm_device *xvm)
{
	mutex_init(&xvm->dma.pool.lock);
	INIT_WORK(&xvm->dma.pool.grow, xvm_pool_grow);
}

int xvm_pool_open(struct xvm_device *xvm)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	struct shim_pool *map;

	if (!xvm->bus.shared_pool || !xvm_pool_max_pages)
		return 0;
	map = kmalloc(shim_pool_size(), GFP_KERNEL);
	if (!map)
		return -ENOMEM;
	shim_pool_init(map);
	mutex_lock(&pool->lock);
	pool->map = map;
	mutex_unlock(&pool->lock);
	return 0;
}

/*
 * What suffices as long as little is asked. A network driver fills its receive
 * queue of 256 entries, with a page each, before anything can grow.
 */
static unsigned int xvm_pool_initial_chunks(const struct xvm_device *xvm)
{
	u32 device = xvm->virtio->vdev.id.device;

	return device == VIRTIO_ID_NET ? 1 + 256 / SHIM_CHUNK_PAGES : 1;
}

/* The device is being set up. */
void xvm_pool_start(struct xvm_device *xvm)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	unsigned int i;

	if (!pool->map)
		return;
	mutex_lock(&pool->lock);
	pool->limit = shim_pool_chunk_limit(xvm_pool_max_pages, xvm->dma.references);
	pool->running = true;
	for (i = 0; i < xvm_pool_initial_chunks(xvm); i++)
		xvm_pool_add_chunk(xvm);
	mutex_unlock(&pool->lock);
}

/* From here on nothing is shared, and nothing is taken. */
void xvm_pool_stop(struct xvm_device *xvm)
{
	struct xvm_pool *pool = &xvm->dma.pool;

	if (!pool->map)
		return;
	mutex_lock(&pool->lock);
	pool->running = false;
	shim_pool_open(pool->map, 0);
	mutex_unlock(&pool->lock);
}

/*
 * Takes all pages back, from a device that was reset or is gone. They keep what
 * buffers that are still mapped may want copied out of them.
 */
void xvm_pool_revoke(struct xvm_device *xvm)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	unsigned int i;

	xvm_pool_stop(xvm);
	for (i = 0; i < SHIM_MAX_CHUNKS; i++)
		if (pool->chunks[i])
			xvm_chunk_revoke(xvm, pool->chunks[i]);
}

void xvm_pool_close(struct xvm_device *xvm)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	unsigned int i;

	xvm_pool_revoke(xvm);
	cancel_work_sync(&pool->grow);
	for (i = 0; i < SHIM_MAX_CHUNKS; i++) {
		if (!pool->chunks[i])
			continue;
		xvm_chunk_free(pool->chunks[i]);
		pool->chunks[i] = NULL;
	}
	mutex_lock(&pool->lock);
	kfree(pool->map);
	pool->map = NULL;
	mutex_unlock(&pool->lock);
}

/* A buffer is to be granted. If it is for want of room, there may be more soon. */
static void xvm_pool_fall_back(struct xvm_pool *pool, int why)
{
	atomic_inc(&pool->fallbacks);
	if (why == -ENOSPC && READ_ONCE(pool->running) &&
	    shim_pool_chunks(pool->map) < READ_ONCE(pool->limit))
		schedule_work(&pool->grow);
}

/* Hands a buffer's bytes, or some of them, to their next owner. */
static void xvm_pool_copy(struct xvm_pool *pool, const struct shim_place *place,
			  size_t size, enum xvm_owner owner)
{
	struct xvm_chunk *chunk = pool->chunks[place->chunk];
	void *original = phys_to_virt(chunk->original[place->note] +
				      place->offset);
	void *pooled = chunk->memory + place->start;

	if (owner == XVM_DRIVER)
		memcpy(original, pooled, size);
	else
		memcpy(pooled, original, size);
}

static void xvm_pool_note_original(struct xvm_pool *pool, const struct shim_place *place,
				   phys_addr_t phys)
{
	phys_addr_t *note = &pool->chunks[place->chunk]->original[place->note];
	u32 i;

	for (i = 0; i < place->notes; i++)
		note[i] = phys + i * place->stride;
}

/*
 * Puts a buffer into the pool. What the device is only to write is not copied
 * there [3.11]. DMA_MAPPING_ERROR: it is to be granted. In any context.
 */
dma_addr_t xvm_pool_map(struct xvm_device *xvm, phys_addr_t phys, size_t size,
			enum dma_data_direction dir, unsigned long attrs)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	struct shim_place place;
	int err;

	if (!pool->map)
		return DMA_MAPPING_ERROR;
	err = shim_pool_take(pool->map, size, raw_smp_processor_id(), &place);
	if (err) {
		xvm_pool_fall_back(pool, err);
		return DMA_MAPPING_ERROR;
	}
	xvm_pool_note_original(pool, &place, phys);
	if (!(attrs & DMA_ATTR_SKIP_CPU_SYNC) && shim_dma_device_reads(dir))
		xvm_pool_copy(pool, &place, size, XVM_BACKEND);
	return place.address;
}

static bool xvm_pool_find(struct xvm_pool *pool, dma_addr_t address, size_t size,
			  struct shim_place *place)
{
	return pool->map && !shim_pool_find(address, size, place) &&
	       pool->chunks[place->chunk];
}

/* False: the address is not in the pool. */
bool xvm_pool_sync(struct xvm_device *xvm, dma_addr_t address, size_t size,
		   enum dma_data_direction dir, enum xvm_owner owner)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	struct shim_place place;

	if (!xvm_pool_find(pool, address, size, &place))
		return false;
	if (owner == XVM_DRIVER ? shim_dma_device_writes(dir) :
				  shim_dma_device_reads(dir))
		xvm_pool_copy(pool, &place, size, owner);
	return true;
}

/* False: the address is not in the pool. */
bool xvm_pool_unmap(struct xvm_device *xvm, dma_addr_t address, size_t size,
		    enum dma_data_direction dir, unsigned long attrs)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	struct shim_place place;

	if (!xvm_pool_find(pool, address, size, &place))
		return false;
	if (!(attrs & DMA_ATTR_SKIP_CPU_SYNC) && shim_dma_device_writes(dir))
		xvm_pool_copy(pool, &place, size, XVM_DRIVER);
	return !shim_pool_give_back(pool->map, address, size);
}

/* Pages that the device has. */
unsigned int xvm_pool_pages(const struct xvm_device *xvm)
{
	const struct xvm_pool *pool = &xvm->dma.pool;

	return pool->map ? shim_pool_chunks(pool->map) * SHIM_CHUNK_PAGES : 0;
}

/* As xvm_pool_pages(), while the connection may come and go. */
unsigned int xvm_pool_shared(struct xvm_device *xvm)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	unsigned int pages;

	mutex_lock(&pool->lock);
	pages = xvm_pool_pages(xvm);
	mutex_unlock(&pool->lock);
	return pages;
}

unsigned int xvm_pool_in_use(const struct xvm_device *xvm)
{
	const struct xvm_pool *pool = &xvm->dma.pool;

	return pool->map ? shim_pool_in_use(pool->map) : 0;
}

/**
 * xvm_pool_usage() - read how much of the pool is in use
 * @xvm: device
 * @usage: filled in
 *
 * Context: Process context. Takes the pool's mutex, so that the pool is not
 * closed meanwhile.
 */
void xvm_pool_usage(struct xvm_device *xvm, struct xvm_pool_usage *usage)
{
	struct xvm_pool *pool = &xvm->dma.pool;

	mutex_lock(&pool->lock);
	usage->shared = xvm_pool_pages(xvm);
	usage->in_use = xvm_pool_in_use(xvm);
	usage->fallbacks = atomic_read(&pool->fallbacks);
	mutex_unlock(&pool->lock);
}
