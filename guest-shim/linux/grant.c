// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * Grants single pages to the backend, for buffers and rings (dma.c) and for the
 * pool (chunk.c).
 */
#include <xen/page.h>

#include "virtio_msg_xen.h"

/**
 * xvm_grant_page() - grant a page to the backend
 * @xvm: device
 * @ref: grant reference, allocated by the caller
 * @frame: Xen frame number of the page
 * @read_only: the backend must not write to the page
 *
 * Context: Any context.
 */
void xvm_grant_page(struct xvm_device *xvm, grant_ref_t ref,
		    unsigned long frame, bool read_only)
{
	gnttab_grant_foreign_access_ref(ref, xvm->xdev->otherend_id,
					pfn_to_gfn(frame), read_only);
}

/**
 * xvm_grant_end() - end the grant of a page
 * @xvm: device
 * @ref: grant reference, which is freed
 * @page: page to withhold if the backend still uses it, or NULL
 *
 * If the backend still uses the grant, the kernel keeps it and holds @page until
 * the use ends, and this function gives the device up [3.6]. The caller then no
 * longer owns its reference to @page.
 *
 * Return: true if the grant ended, false if the backend still uses it.
 * Context: Any context.
 */
bool xvm_grant_end(struct xvm_device *xvm, grant_ref_t ref, struct page *page)
{
	if (gnttab_try_end_foreign_access(ref))
		return true;

	if (!xchg(&xvm->grant_in_use, true))
		dev_alert(&xvm->xdev->dev,
			  "backend still uses grant %u of memory that was returned; the page is withheld\n",
			  ref);
	gnttab_end_foreign_access(ref, page);
	xvm_fail(xvm, "backend did not let go of a grant");
	return false;
}
