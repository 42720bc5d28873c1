// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * Bouncing: a backend that is not trusted must not get a page that holds other data
 * than the buffer [3.8, 3.9]. The module grants another page in its place, with the
 * buffer's bytes at the same offset and zeros around them.
 *
 * Only the first and the last page of a buffer can need bouncing. Buffers that fill
 * their pages, such as blocks of the page cache, are granted directly and never
 * copied.
 */
#include <linux/dma-direction.h>
#include <linux/gfp.h>
#include <linux/mempool.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <xen/page.h>

#include "virtio_msg_xen.h"

/*
 * Pages in reserve for when memory is short, so that the device gets slow but does
 * not stop: a block request for whole pages needs one page for its header, one for
 * its status and at most two for its descriptors.
 */
#define RESERVED_PAGES 4

/* Maximum number of bounce pages of one device [section 7]. */
#define MAX_PAGES 4096

static char *xvm_bounce_policy_name = "auto";
module_param_named(bounce, xvm_bounce_policy_name, charp, 0444);
MODULE_PARM_DESC(bounce, "Copy buffers that share a page with other data: auto (if the backend is not trusted), always or never");

static const char * const xvm_bounce_policies[] = {
	[SHIM_BOUNCE_AUTO] = "auto",
	[SHIM_BOUNCE_ALWAYS] = "always",
	[SHIM_BOUNCE_NEVER] = "never",
};

static int xvm_bounce_policy;

/**
 * xvm_bounce_init() - check the module's parameter bounce=
 *
 * Return: 0, or -EINVAL if the parameter names no policy.
 * Context: Module initialisation.
 */
int __init xvm_bounce_init(void)
{
	xvm_bounce_policy = sysfs_match_string(xvm_bounce_policies, xvm_bounce_policy_name);
	if (xvm_bounce_policy >= 0)
		return 0;
	pr_err("virtio_msg_xen: bounce=%s is none of auto, always, never\n",
	       xvm_bounce_policy_name);
	return xvm_bounce_policy;
}

/**
 * xvm_bounce_open() - prepare to bounce if the backend is not trusted [3.8]
 * @xvm: device
 *
 * Return: 0 or -ENOMEM.
 * Context: Process context. Sleeps.
 */
int xvm_bounce_open(struct xvm_device *xvm)
{
	struct xenbus_device *xdev = xvm->xdev;
	struct xvm_bounce *bounce = &xvm->dma.bounce;
	u32 trusted = xenbus_read_unsigned(xdev->nodename, "trusted", 1);

	if (!shim_bounces(xvm_bounce_policy, trusted, xdev->otherend_id))
		return 0;
	spin_lock_init(&bounce->lock);
	bounce->reserve = mempool_create_page_pool(RESERVED_PAGES, 0);
	if (!bounce->reserve)
		return -ENOMEM;
	bounce->pages = kvcalloc(xvm->dma.references, sizeof(*bounce->pages),
				 GFP_KERNEL);
	if (!bounce->pages) {
		xvm_bounce_close(xvm);
		return -ENOMEM;
	}
	return 0;
}

/**
 * xvm_bounce_close() - free what xvm_bounce_open() allocated
 * @xvm: device whose grants have all ended
 *
 * Context: Process context. Sleeps.
 */
void xvm_bounce_close(struct xvm_device *xvm)
{
	struct xvm_bounce *bounce = &xvm->dma.bounce;

	kvfree(bounce->pages);
	bounce->pages = NULL;
	mempool_destroy(bounce->reserve);
	bounce->reserve = NULL;
}

static void *xvm_bounce_original(struct page *page)
{
	phys_addr_t frame = page_private(page);

	return phys_to_virt(frame << XEN_PAGE_SHIFT);
}

static struct page *xvm_bounce_new_page(struct xvm_bounce *bounce, unsigned long frame)
{
	struct page *page = NULL;

	if (atomic_inc_return(&bounce->held) <= MAX_PAGES)
		page = mempool_alloc(bounce->reserve, GFP_ATOMIC | __GFP_NOWARN);
	if (!page) {
		atomic_dec(&bounce->held);
		return NULL;
	}
	set_page_private(page, frame);
	return page;
}

/**
 * xvm_bounce_free() - free a bounce page
 * @xvm: device
 * @page: page from xvm_bounce_take() that is no longer granted
 *
 * Context: Any context.
 */
void xvm_bounce_free(struct xvm_device *xvm, struct page *page)
{
	mempool_free(page, xvm->dma.bounce.reserve);
	atomic_dec(&xvm->dma.bounce.held);
}

/*
 * Copies the buffer's bytes in either direction of the transfer: if the device
 * writes less than the buffer, the driver finds the old bytes in the rest.
 */
static void xvm_bounce_fill(struct page *page, const struct shim_piece *piece)
{
	u32 end = piece->offset + piece->length;
	void *to = page_address(page);

	memset(to, 0, piece->offset);
	memcpy(to + piece->offset, xvm_bounce_original(page) + piece->offset,
	       piece->length);
	memset(to + end, 0, XEN_PAGE_SIZE - end);
}

/**
 * xvm_bounce_map() - make the bounce pages for a buffer, if it needs any
 * @xvm: device
 * @first: first of the grant references for the buffer
 * @phys: physical address of the buffer
 * @size: bytes
 *
 * Return: 0, or -ENOMEM, with no bounce page made.
 * Context: Any context.
 */
int xvm_bounce_map(struct xvm_device *xvm, grant_ref_t first, phys_addr_t phys,
		   size_t size)
{
	struct xvm_bounce *bounce = &xvm->dma.bounce;
	struct shim_piece piece;
	struct page *page;
	u32 i;

	if (!bounce->pages)
		return 0;
	for (i = 0; !shim_dma_piece(phys, size, i, &piece); i++) {
		if (piece.fills_page)
			continue;
		page = xvm_bounce_new_page(bounce, XEN_PFN_DOWN(phys) + i);
		if (!page)
			goto free;
		xvm_bounce_fill(page, &piece);
		bounce->pages[first + i] = page;
	}
	return 0;

free:
	while (i--) {
		page = xvm_bounce_take(xvm, first + i);
		if (page)
			xvm_bounce_free(xvm, page);
	}
	return -ENOMEM;
}

/*
 * Whether a reference grants a bounce page. Without the lock: while a buffer is
 * mapped, the answer can change only from true to false, so that most pages of long
 * buffers need no lock.
 */
static bool xvm_bounce_is_bounced(const struct xvm_bounce *bounce, grant_ref_t ref)
{
	return bounce->pages && READ_ONCE(bounce->pages[ref]);
}

/**
 * xvm_bounce_take() - take the bounce page of a reference
 * @xvm: device
 * @ref: grant reference
 *
 * Return: The page, which the caller then owns, or NULL if there is none.
 * Context: Any context.
 */
struct page *xvm_bounce_take(struct xvm_device *xvm, grant_ref_t ref)
{
	struct xvm_bounce *bounce = &xvm->dma.bounce;
	unsigned long flags;
	struct page *page;

	if (!xvm_bounce_is_bounced(bounce, ref))
		return NULL;
	spin_lock_irqsave(&bounce->lock, flags);
	page = bounce->pages[ref];
	WRITE_ONCE(bounce->pages[ref], NULL);
	spin_unlock_irqrestore(&bounce->lock, flags);
	return page;
}

static void xvm_bounce_copy(struct page *page, const struct shim_piece *piece,
			    enum xvm_owner owner)
{
	void *original = xvm_bounce_original(page) + piece->offset;
	void *bounced = page_address(page) + piece->offset;

	if (owner == XVM_DRIVER)
		memcpy(original, bounced, piece->length);
	else
		memcpy(bounced, original, piece->length);
}

/**
 * xvm_bounce_sync() - copy the bounced bytes of a buffer to its next owner
 * @xvm: device
 * @address: DMA address of a mapped buffer, or of a part of one
 * @size: bytes
 * @dir: direction of the transfer
 * @owner: next owner
 *
 * Context: Any context.
 */
void xvm_bounce_sync(struct xvm_device *xvm, dma_addr_t address, size_t size,
		     enum dma_data_direction dir, enum xvm_owner owner)
{
	struct xvm_bounce *bounce = &xvm->dma.bounce;
	struct shim_grants grants;
	struct shim_piece piece;
	unsigned long flags;
	struct page *page;
	u32 i;

	if (!bounce->pages)
		return;
	if (owner == XVM_DRIVER ? !shim_dma_device_writes(dir) :
				  !shim_dma_device_reads(dir))
		return;
	if (shim_dma_references(address, size, &grants) ||
	    grants.first + grants.pages > xvm->dma.references)
		return;
	for (i = 0; i < grants.pages; i++) {
		if (!xvm_bounce_is_bounced(bounce, grants.first + i) ||
		    shim_dma_piece(address, size, i, &piece))
			continue;
		/* xvm_dma_revoke_all() may take pages at any time. */
		spin_lock_irqsave(&bounce->lock, flags);
		page = bounce->pages[grants.first + i];
		if (page)
			xvm_bounce_copy(page, &piece, owner);
		spin_unlock_irqrestore(&bounce->lock, flags);
	}
}
