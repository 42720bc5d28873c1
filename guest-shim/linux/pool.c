// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * The shared pool [3.10, 3.11]: pages that the guest grants once and the device
 * keeps mapped (chunk.c). Buffers are copied into and out of the pool, so that
 * requests need no grants.
 *
 * The core allocates space in the pool without a lock. A buffer that does not fit is
 * granted instead (dma.c), and the pool grows (resize.c). If it cannot grow, the
 * driver may have to try again when requests have ended.
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <xen/page.h>

#include "virtio_msg_xen.h"

static unsigned int xvm_pool_max_pages = 2048;
module_param_named(pool, xvm_pool_max_pages, uint, 0444);
MODULE_PARM_DESC(pool, "Pages of 4 KiB that a device may keep mapped, in steps of 64; 0: buffers are granted one by one");

/**
 * xvm_pool_pages() - size of the pool
 * @xvm: device whose pool is not closed meanwhile
 *
 * Return: Number of pages that buffers may use.
 * Context: Any context.
 */
unsigned int xvm_pool_pages(const struct xvm_device *xvm)
{
	const struct xvm_pool *pool = &xvm->dma.pool;

	return pool->map ? shim_pool_chunks(pool->map) * SHIM_CHUNK_PAGES : 0;
}

/**
 * xvm_pool_init() - prepare a device for xvm_pool_open()
 * @xvm: device
 */
void xvm_pool_init(struct xvm_device *xvm)
{
	mutex_init(&xvm->dma.pool.lock);
	spin_lock_init(&xvm->dma.pool.map_lock);
	xvm_resize_init(xvm);
}

/**
 * xvm_pool_open() - create the pool, without chunks
 * @xvm: device
 *
 * Creates no pool if the backend offers none or the user wants none.
 *
 * Return: 0 or -ENOMEM.
 * Context: Process context. Sleeps.
 */
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
	spin_lock(&pool->map_lock);
	pool->map = map;
	spin_unlock(&pool->map_lock);
	return 0;
}

/**
 * xvm_pool_start() - share the first chunks with the device
 * @xvm: device that is being set up
 *
 * Context: Process context. Waits for the device.
 */
void xvm_pool_start(struct xvm_device *xvm)
{
	struct xvm_pool *pool = &xvm->dma.pool;

	if (!pool->map)
		return;
	mutex_lock(&pool->lock);
	pool->limit = shim_pool_chunk_limit(xvm_pool_max_pages, xvm->dma.references);
	pool->running = true;
	xvm_resize_start(xvm);
	mutex_unlock(&pool->lock);
}

/**
 * xvm_pool_stop() - use the pool for no more buffers
 * @xvm: device that is about to be reset
 *
 * Context: Process context. Sleeps.
 */
void xvm_pool_stop(struct xvm_device *xvm)
{
	struct xvm_pool *pool = &xvm->dma.pool;

	if (!pool->map)
		return;
	mutex_lock(&pool->lock);
	pool->running = false;
	shim_pool_set_chunks(pool->map, 0);
	mutex_unlock(&pool->lock);
}

/**
 * xvm_pool_pause() - keep the pool at its size
 * @xvm: device that loses its connection, and keeps its buffers
 *
 * Context: Process context. Sleeps.
 */
void xvm_pool_pause(struct xvm_device *xvm)
{
	struct xvm_pool *pool = &xvm->dma.pool;

	mutex_lock(&pool->lock);
	pool->running = false;
	mutex_unlock(&pool->lock);
}

/**
 * xvm_pool_move() - grant the pool to the domain that the backend is in now
 * @xvm: device after xvm_pool_pause() and xvm_dma_set_domain()
 *
 * A chunk that buffers do not use yet is revoked.
 *
 * Return: 0, or -EBUSY if the earlier domain still uses a page.
 * Context: Process context.
 */
int xvm_pool_move(struct xvm_device *xvm)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	u32 i, chunks = xvm_pool_pages(xvm) / SHIM_CHUNK_PAGES;
	int err = 0;

	mutex_lock(&pool->lock);
	for (i = 0; i < chunks && !err; i++)
		err = xvm_chunk_move(xvm, pool->chunks[i]);
	for (; i < SHIM_MAX_CHUNKS && !err; i++)
		if (pool->chunks[i])
			xvm_chunk_revoke(xvm, pool->chunks[i]);
	mutex_unlock(&pool->lock);
	return err;
}

/**
 * xvm_pool_share_again() - share a pool that was moved with the device there
 * @xvm: device that is being set up
 *
 * Return: 0 or a negative errno number.
 * Context: Process context. Waits for the device.
 */
int xvm_pool_share_again(struct xvm_device *xvm)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	u32 i, chunks = xvm_pool_pages(xvm) / SHIM_CHUNK_PAGES;
	int err = 0;

	mutex_lock(&pool->lock);
	for (i = 0; i < chunks && !err; i++)
		err = xvm_chunk_share_again(xvm, i);
	pool->running = !err && pool->map;
	mutex_unlock(&pool->lock);
	return err;
}

/**
 * xvm_pool_revoke() - end the grants of all chunks
 * @xvm: device that was reset or whose backend is gone
 *
 * The pages keep their content, to be copied into buffers that are still mapped.
 *
 * Context: Process context. Sleeps.
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

/**
 * xvm_pool_close() - revoke and free the pool
 * @xvm: device, with a pool or without
 *
 * Context: Process context. Sleeps.
 */
void xvm_pool_close(struct xvm_device *xvm)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	struct shim_pool *map = pool->map;
	unsigned int i;

	xvm_pool_revoke(xvm);
	xvm_resize_cancel(xvm);
	for (i = 0; i < SHIM_MAX_CHUNKS; i++) {
		if (!pool->chunks[i])
			continue;
		xvm_chunk_free(pool->chunks[i]);
		pool->chunks[i] = NULL;
	}
	spin_lock(&pool->map_lock);
	pool->map = NULL;
	spin_unlock(&pool->map_lock);
	kfree(map);
}

/* Whether the driver of a device whose pool is full tries again later [3.7]. */
static bool xvm_pool_driver_waits(struct xvm_device *xvm)
{
	return READ_ONCE(xvm->dma.pool.running) && xvm_pool_pages(xvm) &&
	       xvm_pressure_waits(xvm);
}

/*
 * Grows the pool for a buffer that does not fit. Returns -EAGAIN if the driver is to
 * try again, or else @why.
 */
static int xvm_pool_fall_back(struct xvm_device *xvm, size_t size, int why)
{
	struct xvm_pool *pool = &xvm->dma.pool;

	if (why == -ENOSPC && xvm_resize_is_possible(xvm)) {
		xvm_resize_grow(xvm, XEN_PFN_UP(size));
	} else if (why == -ENOSPC && xvm_pool_driver_waits(xvm)) {
		atomic_inc(&pool->retries);
		return -EAGAIN;
	}
	atomic_inc(&pool->fallbacks);
	return why;
}

/* Copies a buffer, or a part of one, to its next owner. */
static void xvm_pool_copy(struct xvm_pool *pool, const struct shim_location *location,
			  size_t size, enum xvm_owner owner)
{
	struct xvm_chunk *chunk = pool->chunks[location->chunk];
	void *original = phys_to_virt(chunk->original[location->note] +
				      location->offset);
	void *pooled = chunk->memory + location->start;

	if (owner == XVM_DRIVER)
		memcpy(original, pooled, size);
	else
		memcpy(pooled, original, size);
}

static void xvm_pool_note_original(struct xvm_pool *pool, const struct shim_location *location,
				   phys_addr_t phys)
{
	phys_addr_t *note = &pool->chunks[location->chunk]->original[location->note];
	u32 i;

	for (i = 0; i < location->notes; i++)
		note[i] = phys + i * location->stride;
}

/**
 * xvm_pool_map() - copy a buffer into the pool
 * @xvm: device
 * @phys: physical address of the buffer
 * @size: bytes
 * @dir: direction of the transfer
 * @attrs: DMA attributes
 * @address: DMA address, filled in
 *
 * A buffer that the device only writes is not copied [3.11].
 *
 * Return: 0, -EAGAIN if the driver is to try again later, or another negative errno
 * number if the buffer must be granted.
 * Context: Any context.
 */
int xvm_pool_map(struct xvm_device *xvm, phys_addr_t phys, size_t size,
		 enum dma_data_direction dir, unsigned long attrs,
		 dma_addr_t *address)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	struct shim_location location;
	int err;

	if (!pool->map)
		return -ENODEV;
	err = shim_pool_take(pool->map, size, raw_smp_processor_id(), &location);
	if (err)
		return xvm_pool_fall_back(xvm, size, err);
	xvm_pool_note_original(pool, &location, phys);
	if (!(attrs & DMA_ATTR_SKIP_CPU_SYNC) && shim_dma_device_reads(dir))
		xvm_pool_copy(pool, &location, size, XVM_BACKEND);
	*address = location.address;
	return 0;
}

static bool xvm_pool_find(struct xvm_pool *pool, dma_addr_t address, size_t size,
			  struct shim_location *location)
{
	return pool->map && !shim_pool_find(address, size, location) &&
	       pool->chunks[location->chunk];
}

/**
 * xvm_pool_sync() - copy a mapped buffer, or a part of one, to its next owner
 * @xvm: device
 * @address: DMA address
 * @size: bytes
 * @dir: direction of the transfer
 * @owner: next owner
 *
 * Return: false if @address is not in the pool, else true.
 * Context: Any context.
 */
bool xvm_pool_sync(struct xvm_device *xvm, dma_addr_t address, size_t size,
		   enum dma_data_direction dir, enum xvm_owner owner)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	struct shim_location location;

	if (!xvm_pool_find(pool, address, size, &location))
		return false;
	if (owner == XVM_DRIVER ? shim_dma_device_writes(dir) :
				  shim_dma_device_reads(dir))
		xvm_pool_copy(pool, &location, size, owner);
	return true;
}

/**
 * xvm_pool_unmap() - copy a buffer out of the pool and free its space
 * @xvm: device
 * @address: DMA address
 * @size: bytes
 * @dir: direction of the transfer
 * @attrs: DMA attributes
 *
 * Return: false if @address is not in the pool, else true.
 * Context: Any context.
 */
bool xvm_pool_unmap(struct xvm_device *xvm, dma_addr_t address, size_t size,
		    enum dma_data_direction dir, unsigned long attrs)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	struct shim_location location;

	if (!xvm_pool_find(pool, address, size, &location))
		return false;
	if (!(attrs & DMA_ATTR_SKIP_CPU_SYNC) && shim_dma_device_writes(dir))
		xvm_pool_copy(pool, &location, size, XVM_DRIVER);
	return !shim_pool_give_back(pool->map, address, size);
}

/**
 * xvm_pool_shared() - size of the pool, if the pool may be closed meanwhile
 * @xvm: device
 *
 * Return: Number of pages that buffers may use.
 * Context: Process context. Does not wait for the device.
 */
unsigned int xvm_pool_shared(struct xvm_device *xvm)
{
	struct xvm_pool *pool = &xvm->dma.pool;
	unsigned int pages;

	spin_lock(&pool->map_lock);
	pages = xvm_pool_pages(xvm);
	spin_unlock(&pool->map_lock);
	return pages;
}

/**
 * xvm_pool_in_use() - pages of the pool in use by buffers
 * @xvm: device whose pool is not closed meanwhile
 *
 * Return: Number of pages.
 * Context: Any context.
 */
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
 * The pool's mutex is not for readers: an attribute that waits for the device would
 * keep its driver from being unbound.
 *
 * Context: Process context. Does not wait for the device.
 */
void xvm_pool_usage(struct xvm_device *xvm, struct xvm_pool_usage *usage)
{
	struct xvm_pool *pool = &xvm->dma.pool;

	spin_lock(&pool->map_lock);
	usage->shared = xvm_pool_pages(xvm);
	usage->in_use = xvm_pool_in_use(xvm);
	usage->fallbacks = atomic_read(&pool->fallbacks);
	usage->retries = atomic_read(&pool->retries);
	usage->growths = READ_ONCE(pool->growths);
	spin_unlock(&pool->map_lock);
}
