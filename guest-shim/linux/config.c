// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * The virtio core's operations on the device: each sends one or a few requests.
 *
 * An operation that cannot return an error gives the device up instead, and returns
 * values that make the virtio core stop.
 */
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/minmax.h>
#include <linux/string.h>
#include <linux/virtio_ring.h>
#include <uapi/linux/virtio_config.h>

#include "virtio_msg_xen.h"

#define REQUIRED_FEATURES \
	(BIT_ULL(VIRTIO_F_VERSION_1) | BIT_ULL(VIRTIO_F_ACCESS_PLATFORM))

/* Timeout for a reset [section 7], and the interval of asking for its end. */
#define RESET_TIMEOUT (10 * HZ)
#define RESET_PAUSE 10 /* ms */

static int xvm_config_request(struct virtio_device *vdev, const struct shim_request *request,
			      struct shim_answer *answer)
{
	return xvm_bus_request(vdev_to_xvm(vdev), request, answer, NULL, 0);
}

static int xvm_config_get_piece(struct virtio_device *vdev, u32 offset, void *buf, u32 len)
{
	struct shim_request get = {
		.kind = SHIM_GET_CONFIG,
		.offset = offset,
		.size = len,
	};
	struct shim_answer answer;
	int err;

	err = xvm_bus_request(vdev_to_xvm(vdev), &get, &answer, buf, len);
	if (err)
		return err;
	return answer.config_size == len ? 0 : -ERANGE;
}

/**
 * xvm_config_read() - read configuration from the device
 * @vdev: virtio device
 * @offset: offset in the configuration
 * @buf: filled in, with zeros in place of bytes that the device does not have
 * @len: bytes
 *
 * Return: Whether the device answered all requests.
 * Context: Process context. Waits for the device.
 */
bool xvm_config_read(struct virtio_device *vdev, unsigned int offset, void *buf,
		     unsigned int len)
{
	u32 most = vdev_to_xvm(vdev)->bus.max_config;
	bool answered = true;

	while (len) {
		u32 piece = min(len, most);
		int err = xvm_config_get_piece(vdev, offset, buf, piece);

		if (err)
			memset(buf, 0, piece);
		answered &= !err || err == -ERANGE;
		offset += piece;
		buf += piece;
		len -= piece;
	}
	return answered;
}

/* Whether the driver is told again what it was told before [2.14, 2.16]. */
static bool xvm_config_is_kept(const struct xvm_device *xvm, unsigned int offset,
			       unsigned int len)
{
	u32 kept = shim_traits_size(xvm->virtio->vdev.id.device);

	if (xvm->dead)
		return true;
	return (xvm->restoring || READ_ONCE(xvm->kept)) && offset < kept &&
	       len <= kept - offset;
}

/*
 * Notes what the driver is told. While it is restored, it is told the same: it has
 * allocated memory for so many queues.
 */
static void xvm_config_get(struct virtio_device *vdev, unsigned int offset, void *buf,
			   unsigned int len)
{
	struct xvm_device *xvm = vdev_to_xvm(vdev);
	bool kept = xvm_config_is_kept(xvm, offset, len);
	u8 *config = xvm->traits.config, *bytes = buf;

	if (!kept && !xvm_config_read(vdev, offset, buf, len)) {
		/* Zeros, which are not noted; or what the driver had, if it waits now. */
		kept = xvm_config_is_kept(xvm, offset, len);
		if (!kept)
			return;
	}
	for (; len; len--, offset++, bytes++) {
		if (offset >= SHIM_TRAITS_CONFIG)
			*bytes = kept ? 0 : *bytes;
		else if (kept)
			*bytes = config[offset];
		else
			config[offset] = *bytes;
	}
}

/* Records a generation. False, and the device is given up, if it never stays the same. */
static bool xvm_config_may_be_stable(struct xvm_device *xvm, u32 generation)
{
	struct xvm_bus *bus = &xvm->bus;
	u64 now = ktime_to_ms(ktime_get());
	bool never;

	spin_lock_irq(&bus->lock);
	never = shim_generation_observe(&bus->generations, generation, now);
	spin_unlock_irq(&bus->lock);
	if (never)
		xvm_fail(xvm, "the configuration changes whenever it is read");
	return !never;
}

/*
 * The virtio core compares the generation before and after it reads, and reads again
 * if it changed. The generation of a broken device is always 0, which ends this.
 */
static u32 xvm_config_generation(struct virtio_device *vdev)
{
	struct shim_request get = { .kind = SHIM_GET_CONFIG };
	struct shim_answer answer;

	/* A request for 0 bytes: the answer contains only the generation. */
	if (xvm_config_request(vdev, &get, &answer) ||
	    !xvm_config_may_be_stable(vdev_to_xvm(vdev), answer.config_generation))
		return 0;
	return answer.config_generation;
}

static int xvm_config_set_piece(struct virtio_device *vdev, u32 offset, const void *buf,
				u32 len)
{
	struct shim_request set = {
		.kind = SHIM_SET_CONFIG,
		.offset = offset,
		.size = len,
		.data = buf,
	};
	struct shim_answer answer;
	int err = xvm_config_request(vdev, &set, &answer);

	if (err)
		return err;
	return answer.config_size == len ? 0 : -EPERM;
}

static void xvm_config_set(struct virtio_device *vdev, unsigned int offset,
			   const void *buf, unsigned int len)
{
	u32 most = vdev_to_xvm(vdev)->bus.max_config;

	while (len) {
		u32 piece = min(len, most);

		if (xvm_config_set_piece(vdev, offset, buf, piece))
			dev_warn(&vdev->dev,
				 "%u bytes of configuration at %u are not written\n",
				 piece, offset);
		offset += piece;
		buf += piece;
		len -= piece;
	}
}

static u8 xvm_config_get_status(struct virtio_device *vdev)
{
	struct shim_request get = { .kind = SHIM_GET_STATUS };
	struct shim_answer answer;

	if (vdev_to_xvm(vdev)->dead)
		return vdev_to_xvm(vdev)->dead_status;
	/* 0 if the device does not answer: it has accepted nothing. */
	if (xvm_config_request(vdev, &get, &answer))
		return 0;
	xvm_check_status(vdev_to_xvm(vdev), answer.status);
	return answer.status;
}

static void xvm_config_set_status(struct virtio_device *vdev, u8 status)
{
	struct shim_request set = { .kind = SHIM_SET_STATUS, .status = status };
	struct shim_answer answer;

	if (vdev_to_xvm(vdev)->dead) {
		vdev_to_xvm(vdev)->dead_status = status;
		return;
	}
	/* Only this answer reports a start that failed [6.5]. */
	if (xvm_config_request(vdev, &set, &answer) ||
	    !xvm_check_status(vdev_to_xvm(vdev), answer.status))
		return;
	if (status & VIRTIO_CONFIG_S_DRIVER_OK)
		WRITE_ONCE(vdev_to_xvm(vdev)->bus.driver_ok, true);
}

/* Requests the reset, then waits until it is complete [6.4]. */
static int xvm_config_reset_device(struct virtio_device *vdev)
{
	struct shim_request request = { .kind = SHIM_SET_STATUS, .status = 0 };
	unsigned long end = jiffies + RESET_TIMEOUT;
	struct shim_answer answer;
	int err;

	while (!(err = xvm_config_request(vdev, &request, &answer)) && answer.status) {
		if (time_after(jiffies, end)) {
			xvm_fail(vdev_to_xvm(vdev), "its reset does not end");
			return -ETIMEDOUT;
		}
		request.kind = SHIM_GET_STATUS;
		msleep(RESET_PAUSE);
	}
	return err;
}

/*
 * After a reset, the device has no page of the guest mapped [6.4]. If the reset fails,
 * the pool stays granted until the connection ends.
 */
static void xvm_config_reset(struct virtio_device *vdev)
{
	struct xvm_device *xvm = vdev_to_xvm(vdev);

	if (xvm->freezing)
		xvm_interface_stop(xvm);
	xvm->dead_status = 0;
	/* Newer kernels reset a device that has its driver when they shut down. */
	WRITE_ONCE(xvm->bus.driver_ok, false);
	xvm_bus_set_running(xvm, false);
	xvm_pool_stop(xvm);
	if (!xvm_config_reset_device(vdev))
		xvm_pool_revoke(xvm);
	xvm_synchronize_cbs(vdev);
}

static u64 xvm_config_get_features(struct virtio_device *vdev)
{
	struct shim_request get = { .kind = SHIM_GET_FEATURES };
	struct shim_answer answer;

	return xvm_config_request(vdev, &get, &answer) ? 0 : answer.features;
}

/* The features that a device must offer. */
static u64 xvm_config_required_features(void)
{
	if (xvm_debug(XVM_DEBUG_BYPASS))
		return BIT_ULL(VIRTIO_F_VERSION_1);
	return REQUIRED_FEATURES;
}

static int xvm_config_finalize_features(struct virtio_device *vdev)
{
	struct shim_request set = { .kind = SHIM_SET_FEATURES };
	u64 required = xvm_config_required_features();
	u64 accepted = vdev->features;
	struct shim_answer answer;

	/* Clears transport features that it does not know: VIRTIO_F_RING_RESET is set below. */
	vring_transport_features(vdev);
	/* This transport does not support these, even if the device offers them. */
	__virtio_clear_bit(vdev, VIRTIO_F_RING_PACKED);
	__virtio_clear_bit(vdev, VIRTIO_F_NOTIFICATION_DATA);
	if (accepted & BIT_ULL(VIRTIO_F_RING_RESET))
		__virtio_set_bit(vdev, VIRTIO_F_RING_RESET);
	if ((vdev->features & required) != required) {
		dev_err(&vdev->dev,
			"device does not offer VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM\n");
		return -EINVAL;
	}
	if (vdev_to_xvm(vdev)->dead)
		return 0;
	set.features = vdev->features;
	if (xvm_debug(XVM_DEBUG_NO_ACCESS_PLATFORM) ||
	    xvm_debug(XVM_DEBUG_BYPASS))
		set.features &= ~BIT_ULL(VIRTIO_F_ACCESS_PLATFORM);
	return xvm_config_request(vdev, &set, &answer);
}

static const char *xvm_config_bus_name(struct virtio_device *vdev)
{
	return dev_name(vdev->dev.parent);
}

const struct virtio_config_ops xvm_config_ops = {
	.get = xvm_config_get,
	.set = xvm_config_set,
	.generation = xvm_config_generation,
	.get_status = xvm_config_get_status,
	.set_status = xvm_config_set_status,
	.reset = xvm_config_reset,
	.find_vqs = compat_find_vqs,
	.del_vqs = xvm_del_vqs,
	.synchronize_cbs = xvm_synchronize_cbs,
	.disable_vq_and_reset = xvm_disable_vq,
	.enable_vq_after_reset = xvm_enable_vq,
	.get_features = xvm_config_get_features,
	.finalize_features = xvm_config_finalize_features,
	.bus_name = xvm_config_bus_name,
};
