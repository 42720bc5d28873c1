// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * Chunks of the pool: allocates their pages, grants them, shares them with the
 * device by one message [5.8], takes them back by another [5.11] and revokes them.
 * All devices of the guest share the grant references that it has for pools.
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/overflow.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <xen/page.h>

#include "virtio_msg_xen.h"

#define CHUNK_BYTES (SHIM_CHUNK_PAGES * XEN_PAGE_SIZE)

/* Chunks of all devices that are granted or about to be. */
static atomic_t xvm_chunks;

/* Whether the guest has references for one chunk more beside @others. */
static bool xvm_chunk_is_allowed(const struct xvm_device *xvm, u32 number, u32 others)
{
	return others < shim_pool_guest_limit(number, xvm->dma.references);
}

/**
 * xvm_chunk_is_possible() - whether a device may get a chunk now
 * @xvm: device
 * @number: number of the chunk
 *
 * Return: false if the pools of all devices have the guest's share of references.
 * Context: Any context.
 */
bool xvm_chunk_is_possible(const struct xvm_device *xvm, u32 number)
{
	return xvm_chunk_is_allowed(xvm, number, atomic_read(&xvm_chunks));
}

static struct xvm_chunk *xvm_chunk_new(u32 number)
{
	struct xvm_chunk *chunk;

	chunk = kzalloc(struct_size(chunk, original, shim_pool_notes(number)),
			GFP_KERNEL);
	if (!chunk)
		return NULL;
	chunk->memory = alloc_pages_exact(CHUNK_BYTES, GFP_KERNEL |
					  __GFP_NORETRY | __GFP_NOWARN);
	if (!chunk->memory) {
		kfree(chunk);
		return NULL;
	}
	return chunk;
}

/* Allocates a chunk's references within the guest's share. */
static int xvm_chunk_alloc_refs(struct xvm_device *xvm, struct xvm_chunk *chunk,
				u32 number)
{
	int err = -EDQUOT;

	if (xvm_chunk_is_allowed(xvm, number, atomic_inc_return(&xvm_chunks) - 1))
		err = gnttab_alloc_grant_reference_seq(SHIM_CHUNK_PAGES, &chunk->first);
	if (err)
		atomic_dec(&xvm_chunks);
	return err;
}

/* Grants a chunk's pages under consecutive references. */
static int xvm_chunk_grant(struct xvm_device *xvm, struct xvm_chunk *chunk, u32 number)
{
	unsigned long frame = XEN_PFN_DOWN(virt_to_phys(chunk->memory));
	unsigned int i;
	int err;

	err = xvm_chunk_alloc_refs(xvm, chunk, number);
	if (err)
		return err;
	/* The device must not see the old content of the pages [3.11]. */
	memset(chunk->memory, 0, CHUNK_BYTES);
	for (i = 0; i < SHIM_CHUNK_PAGES; i++)
		xvm_grant_page(xvm, chunk->first + i, frame + i, false);
	chunk->granted = true;
	return 0;
}

/* If the request fails, the device is broken and the pages stay granted. */
static int xvm_chunk_offer(struct xvm_device *xvm, struct xvm_chunk *chunk, u32 number)
{
	struct shim_request share = {
		.kind = SHIM_SHARE_PAGES,
		.index = number * SHIM_CHUNK_PAGES,
		.count = SHIM_CHUNK_PAGES,
		.reference = chunk->first,
	};
	struct shim_answer answer;
	int err;

	err = xvm_bus_request(xvm, &share, &answer, NULL, 0);
	if (err)
		return err;
	return answer.shared ? 0 : -ENXIO;
}

/**
 * xvm_chunk_share() - grant a chunk and share it with the device
 * @xvm: device
 * @number: number of the chunk
 *
 * Return: 0, -EDQUOT if the pools of all devices have the guest's share of
 * references, -ENXIO if the device refuses the chunk, or another negative errno
 * number.
 * Context: Process context, under the pool's mutex. Waits for the device.
 */
int xvm_chunk_share(struct xvm_device *xvm, u32 number)
{
	struct xvm_chunk **chunk = &xvm->dma.pool.chunks[number];
	int err;

	/* The memory remains allocated when the device is reset. */
	if (!*chunk)
		*chunk = xvm_chunk_new(number);
	if (!*chunk)
		return -ENOMEM;
	/* Of a connection that failed. */
	xvm_chunk_revoke(xvm, *chunk);
	err = xvm_chunk_grant(xvm, *chunk, number);
	if (err)
		return err;
	err = xvm_chunk_offer(xvm, *chunk, number);
	if (err == -ENXIO)
		xvm_chunk_revoke(xvm, *chunk);
	return err;
}

/**
 * xvm_chunk_move() - grant a chunk to the domain that the backend is in now
 * @xvm: device after xvm_dma_set_domain()
 * @chunk: chunk that was shared with the earlier domain
 *
 * The references and the buffers in it stay.
 *
 * Return: 0, or -EBUSY if the earlier domain still uses a page.
 * Context: Process context, under the pool's mutex.
 */
int xvm_chunk_move(struct xvm_device *xvm, struct xvm_chunk *chunk)
{
	unsigned long frame = XEN_PFN_DOWN(virt_to_phys(chunk->memory));
	unsigned int i;

	for (i = 0; i < SHIM_CHUNK_PAGES; i++) {
		if (!gnttab_end_foreign_access_ref(chunk->first + i))
			return -EBUSY;
		xvm_grant_page(xvm, chunk->first + i, frame + i, false);
	}
	return 0;
}

/**
 * xvm_chunk_share_again() - share a chunk that was moved with the device there
 * @xvm: device
 * @number: number of the chunk
 *
 * Return: 0, -EBUSY if the device refuses the chunk, for which it may have room later,
 * or another negative errno number.
 * Context: Process context, under the pool's mutex. Waits for the device.
 */
int xvm_chunk_share_again(struct xvm_device *xvm, u32 number)
{
	int err = xvm_chunk_offer(xvm, xvm->dma.pool.chunks[number], number);

	return err == -ENXIO ? -EBUSY : err;
}

/**
 * xvm_chunk_revoke() - end the grants of a chunk
 * @xvm: device
 * @chunk: chunk, granted or not
 *
 * Pages that the backend still uses are withheld [3.6].
 *
 * Context: Any context.
 */
void xvm_chunk_revoke(struct xvm_device *xvm, struct xvm_chunk *chunk)
{
	struct page *page;
	unsigned int i;

	if (!chunk->granted)
		return;
	chunk->granted = false;
	atomic_dec(&xvm_chunks);
	for (i = 0; i < SHIM_CHUNK_PAGES; i++) {
		page = virt_to_page(chunk->memory + i * XEN_PAGE_SIZE);
		get_page(page);
		if (xvm_grant_end(xvm, chunk->first + i, page))
			put_page(page);
	}
}

/**
 * xvm_chunk_unshare() - take a chunk back from the device
 * @xvm: device
 * @chunk: chunk that was shared and has no buffers
 * @number: number of the chunk
 *
 * Return: 0, after which the chunk is revoked; -EBUSY if the device refuses; or
 * another negative errno number.
 * Context: Process context, under the pool's mutex. Waits for the device.
 */
int xvm_chunk_unshare(struct xvm_device *xvm, struct xvm_chunk *chunk, u32 number)
{
	struct shim_request unshare = {
		.kind = SHIM_UNSHARE_PAGES,
		.index = number * SHIM_CHUNK_PAGES,
		.count = SHIM_CHUNK_PAGES,
	};
	struct shim_answer answer;
	int err;

	err = xvm_bus_request(xvm, &unshare, &answer, NULL, 0);
	if (err)
		return err;
	if (!answer.unshared)
		return -EBUSY;
	xvm_chunk_revoke(xvm, chunk);
	return 0;
}

/**
 * xvm_chunk_free() - free a chunk
 * @chunk: chunk that was revoked
 *
 * Context: Any context.
 */
void xvm_chunk_free(struct xvm_chunk *chunk)
{
	free_pages_exact(chunk->memory, CHUNK_BYTES);
	kfree(chunk);
}
