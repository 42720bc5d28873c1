// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * DMA operations whose addresses are grant references [section 3].
 *
 * Which pages a buffer touches, how they are granted and what address comes of
 * it is planned by the core; here the grant table is written.
 *
 * Syncing is for buffers that are copied, to the pool (pool.c) or to a page in
 * place of their own (bounce.c): otherwise the backend reaches the very pages of
 * the buffer, through coherent memory.
 */
#include <linux/bitmap.h>
#include <linux/dma-map-ops.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <xen/page.h>

#include "virtio_msg_xen.h"

/* Version 1 entries are the smaller ones, so that this is never too few. */
#define REFERENCES_PER_FRAME (XEN_PAGE_SIZE / sizeof(struct grant_entry_v1))

/* The page to grant for page i of a buffer that is granted from first on. */
static unsigned long frame_of(struct xvm_dma *dma, grant_ref_t first,
			      phys_addr_t phys, u32 i)
{
	struct page **bounced = dma->bounce.pages;

	if (bounced && bounced[first + i])
		return page_to_xen_pfn(bounced[first + i]);
	return XEN_PFN_DOWN(phys) + i;
}

/*
 * Grants the pages of a buffer. Called in any context. A buffer that cannot be
 * granted is a mapping error, to be tried again by whoever asked [3.7].
 */
static dma_addr_t xvm_grant(struct xvm_device *xvm, phys_addr_t phys,
			    size_t size, enum dma_data_direction dir,
			    atomic_t *count)
{
	struct xvm_dma *dma = &xvm->dma;
	struct shim_plan plan;
	grant_ref_t first;
	u64 address;
	u32 i;

	if (shim_dma_plan(phys, size, dir, &plan))
		return DMA_MAPPING_ERROR;
	if (gnttab_alloc_grant_reference_seq(plan.pages, &first)) {
		dev_warn_ratelimited(&xvm->xdev->dev,
				     "no %u grant references in a row are free\n",
				     plan.pages);
		return DMA_MAPPING_ERROR;
	}
	address = shim_dma_address(phys, size, first);
	if (!address || first + plan.pages > dma->references ||
	    xvm_bounce_map(xvm, first, phys, size)) {
		gnttab_free_grant_reference_seq(first, plan.pages);
		return DMA_MAPPING_ERROR;
	}

	for (i = 0; i < plan.pages; i++) {
		gnttab_grant_foreign_access_ref(first + i,
						xvm->xdev->otherend_id,
						pfn_to_gfn(frame_of(dma, first, phys, i)),
						plan.read_only);
		set_bit(first + i, dma->live);
	}
	atomic_add(plan.pages, count);
	return address;
}

/*
 * Ends one grant. If the backend still uses it, false: the grant stays, its page
 * is kept from any other use until that ends, and the device is done with [3.6].
 * The page's reference, if a page is given, is then no longer the caller's.
 */
bool xvm_end_grant(struct xvm_device *xvm, grant_ref_t ref, struct page *page)
{
	if (gnttab_try_end_foreign_access(ref))
		return true;

	if (!xchg(&xvm->dma.in_use, true))
		dev_alert(&xvm->xdev->dev,
			  "backend still uses grant %u of memory that was returned; the page is withheld\n",
			  ref);
	gnttab_end_foreign_access(ref, page);
	xvm_fail(xvm, "backend did not let go of a grant");
	return false;
}

static void xvm_revoke_one(struct xvm_device *xvm, grant_ref_t ref)
{
	/* First of all: the reference may soon be another buffer's. */
	struct page *bounced = xvm_bounce_take(xvm, ref);

	if (xvm_end_grant(xvm, ref, bounced) && bounced)
		xvm_bounce_free(xvm, bounced);
}

static void xvm_revoke(struct xvm_device *xvm, dma_addr_t address, size_t size,
		       atomic_t *count)
{
	struct shim_grants grants;
	u32 i;

	if (shim_dma_release(address, size, &grants) ||
	    grants.first + grants.pages > xvm->dma.references) {
		dev_alert(&xvm->xdev->dev, "%zu bytes at %pad were never mapped\n",
			  size, &address);
		return;
	}
	for (i = 0; i < grants.pages; i++) {
		/* Clear if xvm_dma_revoke_all() came first. */
		if (!test_and_clear_bit(grants.first + i, xvm->dma.live))
			continue;
		xvm_revoke_one(xvm, grants.first + i);
		atomic_dec(count);
	}
}

/* Whether buffers are not granted, and the device is given their addresses. */
static bool raw_buffers(void)
{
	return xvm_debug(XVM_DEBUG_RAW_ADDRESSES) || xvm_debug(XVM_DEBUG_BYPASS);
}

static void *xvm_dma_alloc(struct device *dev, size_t size, dma_addr_t *handle,
			   gfp_t gfp, unsigned long attrs)
{
	struct xvm_device *xvm = dev_get_drvdata(dev);
	void *memory;

	/* Whole pages of their own: nothing else lies in what is granted. */
	size = PAGE_ALIGN(size);
	memory = alloc_pages_exact(size, gfp | __GFP_ZERO);
	if (!memory)
		return NULL;
	if (xvm_debug(XVM_DEBUG_BYPASS)) {
		*handle = virt_to_phys(memory);
		return memory;
	}
	*handle = xvm_grant(xvm, virt_to_phys(memory), size, DMA_BIDIRECTIONAL,
			    &xvm->dma.rings);
	if (*handle == DMA_MAPPING_ERROR) {
		free_pages_exact(memory, size);
		return NULL;
	}
	return memory;
}

static void xvm_dma_free(struct device *dev, size_t size, void *memory,
			 dma_addr_t handle, unsigned long attrs)
{
	struct xvm_device *xvm = dev_get_drvdata(dev);

	size = PAGE_ALIGN(size);
	if (!xvm_debug(XVM_DEBUG_BYPASS))
		xvm_revoke(xvm, handle, size, &xvm->dma.rings);
	free_pages_exact(memory, size);
}

dma_addr_t xvm_dma_map_phys(struct device *dev, phys_addr_t phys, size_t size,
			    enum dma_data_direction dir, unsigned long attrs)
{
	struct xvm_device *xvm = dev_get_drvdata(dev);
	dma_addr_t address;

	if (raw_buffers())
		return phys;
	address = xvm_pool_map(xvm, phys, size, dir, attrs);
	if (address != DMA_MAPPING_ERROR)
		return address;
	return xvm_grant(xvm, phys, size, dir, &xvm->dma.requests);
}

void xvm_dma_unmap_phys(struct device *dev, dma_addr_t handle, size_t size,
			enum dma_data_direction dir, unsigned long attrs)
{
	struct xvm_device *xvm = dev_get_drvdata(dev);

	if (raw_buffers())
		return;
	if (xvm_pool_unmap(xvm, handle, size, dir, attrs))
		return;
	if (!(attrs & DMA_ATTR_SKIP_CPU_SYNC))
		xvm_bounce_sync(xvm, handle, size, dir, XVM_DRIVER);
	xvm_revoke(xvm, handle, size, &xvm->dma.requests);
}

static void xvm_dma_unmap_sg(struct device *dev, struct scatterlist *list,
			     int nents, enum dma_data_direction dir,
			     unsigned long attrs)
{
	struct scatterlist *sg;
	int i;

	for_each_sg(list, sg, nents, i)
		xvm_dma_unmap_phys(dev, sg_dma_address(sg), sg_dma_len(sg), dir,
				   attrs);
}

static int xvm_dma_map_sg(struct device *dev, struct scatterlist *list,
			  int nents, enum dma_data_direction dir,
			  unsigned long attrs)
{
	struct scatterlist *sg;
	int i;

	for_each_sg(list, sg, nents, i) {
		sg->dma_address = xvm_dma_map_phys(dev, sg_phys(sg), sg->length,
						   dir, attrs);
		if (sg->dma_address == DMA_MAPPING_ERROR) {
			xvm_dma_unmap_sg(dev, list, i, dir, attrs);
			sg_dma_len(list) = 0;
			return -ENOMEM;
		}
		sg_dma_len(sg) = sg->length;
	}
	return nents;
}

static void sync(struct xvm_device *xvm, dma_addr_t handle, size_t size,
		 enum dma_data_direction dir, enum xvm_owner owner)
{
	if (!xvm_pool_sync(xvm, handle, size, dir, owner))
		xvm_bounce_sync(xvm, handle, size, dir, owner);
}

static void xvm_dma_sync_single_for_cpu(struct device *dev, dma_addr_t handle,
					size_t size,
					enum dma_data_direction dir)
{
	sync(dev_get_drvdata(dev), handle, size, dir, XVM_DRIVER);
}

static void xvm_dma_sync_single_for_device(struct device *dev,
					   dma_addr_t handle, size_t size,
					   enum dma_data_direction dir)
{
	sync(dev_get_drvdata(dev), handle, size, dir, XVM_BACKEND);
}

static void xvm_dma_sync_sg_for_cpu(struct device *dev,
				    struct scatterlist *list, int nents,
				    enum dma_data_direction dir)
{
	struct scatterlist *sg;
	int i;

	for_each_sg(list, sg, nents, i)
		xvm_dma_sync_single_for_cpu(dev, sg_dma_address(sg),
					    sg_dma_len(sg), dir);
}

static void xvm_dma_sync_sg_for_device(struct device *dev,
				       struct scatterlist *list, int nents,
				       enum dma_data_direction dir)
{
	struct scatterlist *sg;
	int i;

	for_each_sg(list, sg, nents, i)
		xvm_dma_sync_single_for_device(dev, sg_dma_address(sg),
					       sg_dma_len(sg), dir);
}

/* A grant address has bit 63 set. */
static int xvm_dma_supported(struct device *dev, u64 mask)
{
	return mask == DMA_BIT_MASK(64);
}

static size_t xvm_dma_max_mapping_size(struct device *dev)
{
	return shim_dma_max_bytes(xvm_pool_pages(dev_get_drvdata(dev)) > 0);
}

static const struct dma_map_ops xvm_dma_ops = {
	.alloc = xvm_dma_alloc,
	.free = xvm_dma_free,
	COMPAT_MAP_OPS,
	.map_sg = xvm_dma_map_sg,
	.unmap_sg = xvm_dma_unmap_sg,
	.sync_single_for_cpu = xvm_dma_sync_single_for_cpu,
	.sync_single_for_device = xvm_dma_sync_single_for_device,
	.sync_sg_for_cpu = xvm_dma_sync_sg_for_cpu,
	.sync_sg_for_device = xvm_dma_sync_sg_for_device,
	.dma_supported = xvm_dma_supported,
	.max_mapping_size = xvm_dma_max_mapping_size,
};

/* The virtio core maps for the parent of a virtio device: the xenbus device. */
int xvm_dma_open(struct xvm_device *xvm)
{
	struct device *dev = &xvm->xdev->dev;
	struct xvm_dma *dma = &xvm->dma;
	int err;

	dma->references = gnttab_max_grant_frames() * REFERENCES_PER_FRAME;
	dma->live = bitmap_zalloc(dma->references, GFP_KERNEL);
	if (!dma->live)
		return -ENOMEM;
	err = xvm_bounce_open(xvm);
	if (err)
		goto free_live;
	err = xvm_pool_open(xvm);
	if (err)
		goto close_bounce;
	set_dma_ops(dev, &xvm_dma_ops);
	err = dma_coerce_mask_and_coherent(dev, DMA_BIT_MASK(64));
	if (err)
		xvm_dma_close(xvm);
	return err;

close_bounce:
	xvm_bounce_close(xvm);
free_live:
	bitmap_free(dma->live);
	dma->live = NULL;
	return err;
}

/* For a backend that is gone while buffers are still mapped [2.7]. */
void xvm_dma_revoke_all(struct xvm_device *xvm)
{
	struct xvm_dma *dma = &xvm->dma;
	unsigned int ref;

	xvm_pool_revoke(xvm);
	for_each_set_bit(ref, dma->live, dma->references)
		if (test_and_clear_bit(ref, dma->live))
			xvm_revoke_one(xvm, ref);
	atomic_set(&dma->requests, 0);
	atomic_set(&dma->rings, 0);
}

/* Pages of buffers that are mapped. */
unsigned int xvm_dma_requests(const struct xvm_device *xvm)
{
	return atomic_read(&xvm->dma.requests) + xvm_pool_in_use(xvm);
}

static unsigned int mapped_grants(const struct xvm_device *xvm)
{
	return atomic_read(&xvm->dma.requests) + atomic_read(&xvm->dma.rings);
}

/* Grants of all kinds. */
unsigned int xvm_dma_outstanding(const struct xvm_device *xvm)
{
	return mapped_grants(xvm) + xvm_pool_pages(xvm);
}

void xvm_dma_close(struct xvm_device *xvm)
{
	struct device *dev = &xvm->xdev->dev;
	unsigned int outstanding = mapped_grants(xvm);

	if (!xvm->dma.live)
		return;
	if (outstanding) {
		dev_warn(dev, "%u grants were never unmapped; ending them\n",
			 outstanding);
		xvm_dma_revoke_all(xvm);
	}
	set_dma_ops(dev, NULL);
	dev->dma_mask = NULL;
	xvm_pool_close(xvm);
	xvm_bounce_close(xvm);
	bitmap_free(xvm->dma.live);
	xvm->dma.live = NULL;
}
