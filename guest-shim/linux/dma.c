// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * DMA operations whose addresses are grant references [section 3].
 *
 * The core plans which pages of a buffer are granted, how, and at what address.
 * The functions here carry the plan out.
 *
 * Only copied buffers need syncing: those in the pool (pool.c) and those with bounce
 * pages (bounce.c). The backend accesses all others in place, in coherent memory.
 */
#include <linux/bitmap.h>
#include <linux/dma-map-ops.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/virtio_ring.h>
#include <xen/page.h>

#include "virtio_msg_xen.h"

/* Entries of version 1 are the smaller ones, so that this is never too low. */
#define REFERENCES_PER_FRAME (XEN_PAGE_SIZE / sizeof(struct grant_entry_v1))

/*
 * The device of these operations. Not the driver data of the xenbus device, which is
 * cleared when that is unbound: a virtio device that cannot be removed (main.c) stays
 * and continues to map and unmap.
 */
static struct xvm_device *xvm_dma_to_xvm(struct device *dev)
{
	return dev_get_platdata(dev);
}

/* The frame to grant for page i of a buffer: of its bounce page, if it has one. */
static unsigned long xvm_dma_frame(struct xvm_dma *dma, grant_ref_t first,
				   phys_addr_t phys, u32 i)
{
	struct page **bounced = dma->bounce.pages;

	if (bounced && bounced[first + i])
		return page_to_xen_pfn(bounced[first + i]);
	return XEN_PFN_DOWN(phys) + i;
}

/* Allocates consecutive references. Returns the DMA address, or 0 on failure. */
static u64 xvm_dma_alloc_refs(struct xvm_device *xvm, phys_addr_t phys,
			      size_t size, u32 pages, grant_ref_t *first)
{
	u64 address;

	if (gnttab_alloc_grant_reference_seq(pages, first)) {
		dev_warn_ratelimited(&xvm->xdev->dev,
				     "no %u grant references in a row are free\n",
				     pages);
		return 0;
	}
	address = shim_dma_address(phys, size, *first);
	if (address && *first + pages <= xvm->dma.references)
		return address;
	gnttab_free_grant_reference_seq(*first, pages);
	return 0;
}

/* Keeps grants from moving to another domain while one begins or ends. */
static unsigned long xvm_dma_lock_frames(struct xvm_dma *dma)
{
	unsigned long flags = 0;

	if (dma->frames)
		spin_lock_irqsave(&dma->frames_lock, flags);
	return flags;
}

static void xvm_dma_unlock_frames(struct xvm_dma *dma, unsigned long flags)
{
	if (dma->frames)
		spin_unlock_irqrestore(&dma->frames_lock, flags);
}

static void xvm_dma_grant_page(struct xvm_device *xvm, grant_ref_t ref,
			       unsigned long frame, bool read_only)
{
	struct xvm_dma *dma = &xvm->dma;
	unsigned long flags = xvm_dma_lock_frames(dma);

	if (dma->frames)
		dma->frames[ref] = (struct xvm_frame) { frame, read_only };
	xvm_grant_page(xvm, ref, frame, read_only);
	atomic_inc(&dma->granted);
	set_bit(ref, dma->live);
	xvm_dma_unlock_frames(dma, flags);
}

/*
 * Grants the pages of a buffer, in any context. A mapping error makes the driver try
 * again later [3.7].
 */
static dma_addr_t xvm_dma_grant(struct xvm_device *xvm, phys_addr_t phys,
				size_t size, enum dma_data_direction dir)
{
	struct xvm_dma *dma = &xvm->dma;
	struct shim_plan plan;
	grant_ref_t first;
	u64 address;
	u32 i;

	if (shim_dma_plan(phys, size, dir, &plan))
		return DMA_MAPPING_ERROR;
	address = xvm_dma_alloc_refs(xvm, phys, size, plan.pages, &first);
	if (!address)
		return DMA_MAPPING_ERROR;
	if (xvm_bounce_map(xvm, first, phys, size)) {
		gnttab_free_grant_reference_seq(first, plan.pages);
		return DMA_MAPPING_ERROR;
	}
	for (i = 0; i < plan.pages; i++)
		xvm_dma_grant_page(xvm, first + i,
				   xvm_dma_frame(dma, first, phys, i),
				   plan.read_only);
	atomic_add(plan.pages, &dma->mapped_pages);
	return address;
}

/* Finds the references of a DMA address. False if nothing was mapped there. */
static bool xvm_dma_find_grants(struct xvm_device *xvm, dma_addr_t address, size_t size,
				struct shim_grants *grants)
{
	if (!shim_dma_references(address, size, grants) &&
	    grants->first + grants->pages <= xvm->dma.references)
		return true;
	dev_alert(&xvm->xdev->dev, "%zu bytes at %pad were never mapped\n",
		  size, &address);
	return false;
}

/* Ends the grant of a page, unless xvm_dma_revoke_all() has already. */
static void xvm_dma_revoke_page(struct xvm_device *xvm, grant_ref_t ref)
{
	unsigned long flags = xvm_dma_lock_frames(&xvm->dma);
	bool live = test_and_clear_bit(ref, xvm->dma.live);
	struct page *bounced;

	xvm_dma_unlock_frames(&xvm->dma, flags);
	if (!live)
		return;
	atomic_dec(&xvm->dma.granted);
	/* Before the grant ends: then another buffer may get the reference. */
	bounced = xvm_bounce_take(xvm, ref);
	if (xvm_grant_end(xvm, ref, bounced) && bounced)
		xvm_bounce_free(xvm, bounced);
}

static void xvm_dma_revoke(struct xvm_device *xvm, dma_addr_t address, size_t size)
{
	struct shim_grants grants;
	u32 i;

	if (!xvm_dma_find_grants(xvm, address, size, &grants))
		return;
	for (i = 0; i < grants.pages; i++)
		xvm_dma_revoke_page(xvm, grants.first + i);
	atomic_sub(grants.pages, &xvm->dma.mapped_pages);
}

/* Whether the device gets physical addresses of buffers, for a test. */
static bool xvm_dma_raw_buffers(void)
{
	return xvm_debug(XVM_DEBUG_RAW_ADDRESSES) || xvm_debug(XVM_DEBUG_BYPASS);
}

/*
 * Allocates references for the pages of a ring. xvm_dma_grant_ring() grants them,
 * when the layout of the ring is known.
 */
static dma_addr_t xvm_dma_reserve(struct xvm_device *xvm, phys_addr_t phys, size_t size)
{
	struct shim_plan plan;
	grant_ref_t first;
	u64 address;
	u32 i;

	if (shim_dma_plan(phys, size, DMA_BIDIRECTIONAL, &plan))
		return DMA_MAPPING_ERROR;
	address = xvm_dma_alloc_refs(xvm, phys, size, plan.pages, &first);
	if (!address)
		return DMA_MAPPING_ERROR;
	for (i = 0; i < plan.pages; i++)
		set_bit(first + i, xvm->dma.reserved);
	return address;
}

/**
 * xvm_dma_grant_ring() - grant the pages of a queue's ring
 * @xvm: device
 * @vq: queue that is about to be enabled
 *
 * Grants the pages that the device only reads read-only [3.4]. A ring that is
 * already granted stays granted.
 *
 * Return: 0 or a negative errno number.
 * Context: Any context.
 */
int xvm_dma_grant_ring(struct xvm_device *xvm, struct virtqueue *vq)
{
	struct shim_ring ring = {
		.descriptor = virtqueue_get_desc_addr(vq),
		.driver = virtqueue_get_avail_addr(vq),
		.device = virtqueue_get_used_addr(vq),
		.entries = virtqueue_get_vring_size(vq),
	};
	unsigned long frame = virt_to_phys(virtqueue_get_vring(vq)->desc) >>
			      XEN_PAGE_SHIFT;
	struct xvm_dma *dma = &xvm->dma;
	u32 i;

	if (xvm_debug(XVM_DEBUG_BYPASS))
		return 0;
	if (shim_ring_plan(&ring) ||
	    ring.first + ring.pages > dma->references) {
		dev_err(&xvm->xdev->dev,
			"the ring of queue %u is not laid out to be granted\n",
			vq->index);
		return -EINVAL;
	}
	for (i = 0; i < ring.pages; i++) {
		if (test_and_clear_bit(ring.first + i, dma->reserved))
			xvm_dma_grant_page(xvm, ring.first + i, frame + i,
					   i < ring.read_only);
		else if (!test_bit(ring.first + i, dma->live))
			return -EIO;
	}
	return 0;
}

/* Ends the grants of a ring and frees references that were not granted. */
static void xvm_dma_release_ring(struct xvm_device *xvm, dma_addr_t address,
				 size_t size)
{
	struct shim_grants grants;
	u32 i;

	if (!xvm_dma_find_grants(xvm, address, size, &grants))
		return;
	for (i = 0; i < grants.pages; i++) {
		if (test_and_clear_bit(grants.first + i, xvm->dma.reserved))
			gnttab_free_grant_reference(grants.first + i);
		else
			xvm_dma_revoke_page(xvm, grants.first + i);
	}
}

/* Coherent memory is for rings: no supported driver allocates it for anything else. */
static void *xvm_dma_alloc(struct device *dev, size_t size, dma_addr_t *handle,
			   gfp_t gfp, unsigned long attrs)
{
	struct xvm_device *xvm = xvm_dma_to_xvm(dev);
	void *memory;

	/* Whole pages, so that the granted pages hold nothing else. */
	size = PAGE_ALIGN(size);
	memory = alloc_pages_exact(size, gfp | __GFP_ZERO);
	if (!memory)
		return NULL;
	*handle = virt_to_phys(memory);
	if (!xvm_debug(XVM_DEBUG_BYPASS))
		*handle = xvm_dma_reserve(xvm, virt_to_phys(memory), size);
	if (*handle == DMA_MAPPING_ERROR) {
		free_pages_exact(memory, size);
		return NULL;
	}
	return memory;
}

static void xvm_dma_free(struct device *dev, size_t size, void *memory,
			 dma_addr_t handle, unsigned long attrs)
{
	size = PAGE_ALIGN(size);
	if (!xvm_debug(XVM_DEBUG_BYPASS))
		xvm_dma_release_ring(xvm_dma_to_xvm(dev), handle, size);
	free_pages_exact(memory, size);
}

/**
 * xvm_dma_map_phys() - map a buffer: DMA operation map_phys
 * @dev: xenbus device
 * @phys: physical address
 * @size: bytes
 * @dir: direction of the transfer
 * @attrs: DMA attributes
 *
 * Copies the buffer into the pool if it fits, else grants its pages, unless the
 * driver is to try again when requests have ended.
 *
 * Return: The DMA address, or DMA_MAPPING_ERROR.
 * Context: Any context.
 */
dma_addr_t xvm_dma_map_phys(struct device *dev, phys_addr_t phys, size_t size,
			    enum dma_data_direction dir, unsigned long attrs)
{
	struct xvm_device *xvm = xvm_dma_to_xvm(dev);
	dma_addr_t address;
	int err;

	if (xvm_dma_raw_buffers())
		return phys;
	err = xvm_pool_map(xvm, phys, size, dir, attrs, &address);
	if (!err)
		return address;
	if (err == -EAGAIN)
		return DMA_MAPPING_ERROR;
	return xvm_dma_grant(xvm, phys, size, dir);
}

/**
 * xvm_dma_unmap_phys() - unmap a buffer: DMA operation unmap_phys
 * @dev: xenbus device
 * @handle: DMA address
 * @size: bytes
 * @dir: direction of the transfer
 * @attrs: DMA attributes
 *
 * Context: Any context.
 */
void xvm_dma_unmap_phys(struct device *dev, dma_addr_t handle, size_t size,
			enum dma_data_direction dir, unsigned long attrs)
{
	struct xvm_device *xvm = xvm_dma_to_xvm(dev);

	if (xvm_dma_raw_buffers())
		return;
	if (xvm->dma.frames)
		xvm_unfinished_unmapped(xvm, handle);
	if (xvm_pool_unmap(xvm, handle, size, dir, attrs))
		return;
	if (!(attrs & DMA_ATTR_SKIP_CPU_SYNC))
		xvm_bounce_sync(xvm, handle, size, dir, XVM_DRIVER);
	xvm_dma_revoke(xvm, handle, size);
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

static void xvm_dma_sync(struct xvm_device *xvm, dma_addr_t handle, size_t size,
			 enum dma_data_direction dir, enum xvm_owner owner)
{
	if (!xvm_pool_sync(xvm, handle, size, dir, owner))
		xvm_bounce_sync(xvm, handle, size, dir, owner);
}

static void xvm_dma_sync_single_for_cpu(struct device *dev, dma_addr_t handle,
					size_t size,
					enum dma_data_direction dir)
{
	xvm_dma_sync(xvm_dma_to_xvm(dev), handle, size, dir, XVM_DRIVER);
}

static void xvm_dma_sync_single_for_device(struct device *dev,
					   dma_addr_t handle, size_t size,
					   enum dma_data_direction dir)
{
	xvm_dma_sync(xvm_dma_to_xvm(dev), handle, size, dir, XVM_BACKEND);
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
	return shim_dma_max_bytes(xvm_pool_pages(xvm_dma_to_xvm(dev)) > 0);
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

static void xvm_dma_free_bitmaps(struct xvm_dma *dma)
{
	bitmap_free(dma->reserved);
	dma->reserved = NULL;
	bitmap_free(dma->live);
	dma->live = NULL;
	kvfree(dma->frames);
	dma->frames = NULL;
}

static int xvm_dma_alloc_bitmaps(struct xvm_dma *dma)
{
	dma->references = gnttab_max_grant_frames() * REFERENCES_PER_FRAME;
	dma->live = bitmap_zalloc(dma->references, GFP_KERNEL);
	dma->reserved = bitmap_zalloc(dma->references, GFP_KERNEL);
	if (xvm_reconnect_seconds)
		dma->frames = kvcalloc(dma->references, sizeof(*dma->frames), GFP_KERNEL);
	if (dma->live && dma->reserved && !dma->frames == !xvm_reconnect_seconds)
		return 0;
	xvm_dma_free_bitmaps(dma);
	return -ENOMEM;
}

/**
 * xvm_dma_open() - set the DMA operations of a device
 * @xvm: device
 *
 * Sets those of the xenbus device: the virtio core maps buffers for the parent of a
 * virtio device.
 *
 * Return: 0 or a negative errno number.
 * Context: Process context. Sleeps.
 */
int xvm_dma_open(struct xvm_device *xvm)
{
	struct device *dev = &xvm->xdev->dev;
	struct xvm_dma *dma = &xvm->dma;
	int err;

	err = xvm_dma_alloc_bitmaps(dma);
	if (err)
		return err;
	err = xvm_bounce_open(xvm);
	if (err)
		goto free_bitmaps;
	err = xvm_pool_open(xvm);
	if (err)
		goto close_bounce;
	atomic_set(&dma->mapped_pages, 0);
	xvm->grant_in_use = false;
	dev->platform_data = xvm;
	set_dma_ops(dev, &xvm_dma_ops);
	err = dma_coerce_mask_and_coherent(dev, DMA_BIT_MASK(64));
	if (err)
		xvm_dma_close(xvm);
	return err;

close_bounce:
	xvm_bounce_close(xvm);
free_bitmaps:
	xvm_dma_free_bitmaps(dma);
	return err;
}

/**
 * xvm_dma_set_domain() - begin all grants for another domain from now on
 * @xvm: device without a connection
 * @domain: the backend's domain
 *
 * Context: Any context.
 */
void xvm_dma_set_domain(struct xvm_device *xvm, domid_t domain)
{
	unsigned long flags = xvm_dma_lock_frames(&xvm->dma);

	xvm->xdev->otherend_id = domain;
	xvm_dma_unlock_frames(&xvm->dma, flags);
}

/* Grants a page to the present domain. Returns false if the earlier one still uses it. */
static bool xvm_dma_move_page(struct xvm_device *xvm, grant_ref_t ref)
{
	unsigned long flags = xvm_dma_lock_frames(&xvm->dma);
	struct xvm_frame *frame = &xvm->dma.frames[ref];
	bool ended = true;

	/* It may have ended meanwhile. */
	if (test_bit(ref, xvm->dma.live)) {
		ended = gnttab_end_foreign_access_ref(ref);
		if (ended)
			xvm_grant_page(xvm, ref, frame->number, frame->read_only);
	}
	xvm_dma_unlock_frames(&xvm->dma, flags);
	return ended;
}

/**
 * xvm_dma_move() - move the grants of rings and buffers to the present domain
 * @xvm: device after xvm_dma_set_domain()
 *
 * The references, and with them the DMA addresses, stay.
 *
 * Return: 0, or -EBUSY if the earlier domain still uses a page.
 * Context: Process context.
 */
int xvm_dma_move(struct xvm_device *xvm)
{
	unsigned int ref;

	for_each_set_bit(ref, xvm->dma.live, xvm->dma.references)
		if (!xvm_dma_move_page(xvm, ref))
			return -EBUSY;
	return 0;
}

/**
 * xvm_dma_revoke_all() - end all grants, even of mapped buffers [2.7]
 * @xvm: device whose backend is gone
 *
 * Context: Process context. Sleeps.
 */
void xvm_dma_revoke_all(struct xvm_device *xvm)
{
	unsigned int ref;

	xvm_pool_revoke(xvm);
	for_each_set_bit(ref, xvm->dma.live, xvm->dma.references)
		xvm_dma_revoke_page(xvm, ref);
}

/**
 * xvm_dma_mapped_pages() - pages of mapped buffers
 * @xvm: device
 *
 * Return: Number of pages, granted or in the pool.
 * Context: Any context.
 */
unsigned int xvm_dma_mapped_pages(const struct xvm_device *xvm)
{
	return atomic_read(&xvm->dma.mapped_pages) + xvm_pool_in_use(xvm);
}

/**
 * xvm_dma_outstanding() - grants of rings, buffers and the pool
 * @xvm: device
 *
 * Return: Number of grants.
 * Context: Process context. Sleeps.
 */
unsigned int xvm_dma_outstanding(struct xvm_device *xvm)
{
	return atomic_read(&xvm->dma.granted) + xvm_pool_shared(xvm);
}

/**
 * xvm_dma_close() - end all grants and reset the DMA operations
 * @xvm: device, open or not
 *
 * Context: Process context. Sleeps.
 */
void xvm_dma_close(struct xvm_device *xvm)
{
	struct device *dev = &xvm->xdev->dev;

	if (!xvm->dma.live)
		return;
	/* Some drivers never unmap their buffers: entropy, vsock. */
	xvm_dma_revoke_all(xvm);
	set_dma_ops(dev, NULL);
	dev->dma_mask = NULL;
	dev->platform_data = NULL;
	xvm_pool_close(xvm);
	xvm_bounce_close(xvm);
	xvm_dma_free_bitmaps(&xvm->dma);
}
