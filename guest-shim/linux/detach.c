// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * The toolstack's question whether it may detach a device [2.15]. A disk that is open,
 * or a partition of it, is in use; no other device is.
 */
#include <linux/blkdev.h>
#include <linux/string.h>

#include "virtio_msg_xen.h"

#define DETACH "detach"
#define ASKED "asked"
#define IN_USE "in-use"

static bool xvm_detach_is_in_use(struct xvm_device *xvm)
{
	struct gendisk *disk = xvm_disk_find(xvm);
	bool in_use;

	if (!disk)
		return false;
	in_use = disk_openers(disk) > 0;
	put_disk(disk);
	return in_use;
}

/**
 * xvm_detach_concerns() - whether a key of the backend's directory is the question
 * @key: name of the key
 */
bool xvm_detach_concerns(const char *key)
{
	return strcmp(key, DETACH) == 0;
}

/* Whether the toolstack has asked. */
static bool xvm_detach_asked(const struct xenbus_device *xdev)
{
	char *value;
	bool asked;

	if (!xdev->otherend)
		return false;
	value = xenbus_read(XBT_NIL, xdev->otherend, DETACH, NULL);
	if (IS_ERR(value))
		return false;
	asked = strcmp(value, ASKED) == 0;
	kfree(value);
	return asked;
}

/**
 * xvm_detach_allowed() - answer the toolstack's question, if there is one
 * @xvm: connected device, not frozen
 *
 * Return: Whether the toolstack has asked and the device is not in use, so that the
 * caller closes it. If it is in use, the toolstack is told.
 * Context: Process context. Sleeps.
 */
bool xvm_detach_allowed(struct xvm_device *xvm)
{
	struct xenbus_device *xdev = xvm->xdev;

	if (!xvm_detach_asked(xdev))
		return false;
	if (!xvm_detach_is_in_use(xvm))
		return true;
	if (xenbus_printf(XBT_NIL, xdev->nodename, DETACH, "%s", IN_USE))
		dev_warn(&xdev->dev, "cannot tell the toolstack that the disk is in use\n");
	return false;
}
