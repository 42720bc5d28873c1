// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * What the driver of a device knows of it, which must not change while the driver goes
 * on with another connection [2.14, 2.16].
 */
#include <linux/if_ether.h>
#include <linux/string.h>
#include <linux/virtio_config.h>
#include <uapi/linux/virtio_ids.h>

#include "virtio_msg_xen.h"

/* What the driver cannot cope with. NULL: nothing. */
static const char *xvm_traits_difference(const struct shim_traits *had,
					 const struct shim_traits *found)
{
	static const char * const differences[] = {
		[SHIM_DEVICE_ID] = "it is a device of another type now",
		[SHIM_FEATURES] = "it lacks features that the driver uses",
		[SHIM_POOL] = "it has no pool any more",
		[SHIM_CAPACITY] = "the disk is smaller now",
		[SHIM_BLOCK_SIZE] = "the disk has blocks of another size now",
		[SHIM_QUEUES] = "it has fewer queues now",
		[SHIM_LIMITS] = "its limits are lower now",
		[SHIM_ADDRESS] = "the interface has another address now",
		[SHIM_PORTS] = "the console has fewer ports now",
		[SHIM_READ_ONLY] = "the disk is read-only now",
	};
	u32 difference = shim_traits_differ(had, found);

	return difference < ARRAY_SIZE(differences) ? differences[difference] : NULL;
}

static int xvm_traits_find(struct xvm_device *xvm, struct shim_traits *found)
{
	struct shim_request get = { .kind = SHIM_DEVICE_INFO };
	struct virtio_device *vdev = &xvm->virtio->vdev;
	struct shim_answer answer;
	int err;

	memset(found, 0, sizeof(*found));
	err = xvm_bus_request(xvm, &get, &answer, NULL, 0);
	if (err)
		return err;
	found->device_id = answer.device_id;
	found->pool = xvm->bus.shared_pool;
	found->features = vdev->config->get_features(vdev);
	if (!xvm_config_read(vdev, 0, found->config, shim_traits_size(found->device_id)))
		return -EIO;
	return READ_ONCE(xvm->bus.broken) ? -EIO : 0;
}

/**
 * xvm_traits_note() - note what the driver knows beside the configuration
 * @xvm: device that is about to lose its connection
 */
void xvm_traits_note(struct xvm_device *xvm)
{
	xvm->traits.device_id = xvm->virtio->vdev.id.device;
	xvm->traits.pool = xvm->bus.shared_pool;
	xvm->traits.features = xvm->virtio->vdev.features;
}

/**
 * xvm_traits_fit() - compare a device with the earlier one; give it up if it differs
 * @xvm: device, connected anew
 * @found: filled in with what it is now
 * @any_address: an interface may have another address, since the driver keeps its own
 *
 * Return: 0, -ENODEV if the driver cannot go on with it, or another negative errno
 * number.
 * Context: Process context. Waits for the device.
 */
int xvm_traits_fit(struct xvm_device *xvm, struct shim_traits *found, bool any_address)
{
	const char *difference;
	int err = xvm_traits_find(xvm, found);

	if (err)
		return err;
	if (any_address && found->device_id == VIRTIO_ID_NET)
		memcpy(found->config, xvm->traits.config, ETH_ALEN);
	difference = xvm_traits_difference(&xvm->traits, found);
	if (!difference)
		return 0;
	xvm_fail(xvm, difference);
	return -ENODEV;
}

/**
 * xvm_traits_announce() - tell the driver that the configuration has changed, if so
 * @xvm: device
 * @found: what it is now
 *
 * What drivers read again comes first: a disk's size, the state of a link.
 */
void xvm_traits_announce(struct xvm_device *xvm, const struct shim_traits *found)
{
	if (memcmp(xvm->traits.config, found->config, sizeof(u64)))
		virtio_config_changed(&xvm->virtio->vdev);
}
