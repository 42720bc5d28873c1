// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * The disk that the driver of a block device has made.
 */
#include <linux/blkdev.h>
#include <linux/string.h>

#include "virtio_msg_xen.h"

/* The kernel exports no name for the type of a disk. */
static int xvm_is_disk(struct device *dev, compat_const void *unused)
{
	return dev->class && strcmp(dev->class->name, "block") == 0 &&
	       dev->type && strcmp(dev->type->name, "disk") == 0;
}

/**
 * xvm_disk_find() - find the disk of a device
 * @xvm: device, whose virtio device is registered
 *
 * Return: The disk, to be released by put_disk(), or NULL: it is no block device, or
 * its driver has made no disk.
 * Context: Process context. Sleeps.
 */
struct gendisk *xvm_disk_find(struct xvm_device *xvm)
{
	struct device *dev = device_find_child(&xvm->virtio->vdev.dev, NULL, xvm_is_disk);

	return dev ? dev_to_disk(dev) : NULL;
}
