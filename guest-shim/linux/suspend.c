// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * Suspend: the guest is saved, restored or moved [2.12, 2.14].
 *
 * A virtio device is frozen before its xenbus device, and restored after it. While it is
 * frozen it is reset and has neither queues nor grants, and its driver waits. If the
 * suspend was cancelled, it goes on with the same connection; otherwise main.c makes a
 * new one first.
 *
 * Xen's suspend cannot cope with errors of these callbacks: other devices would stay
 * frozen. It ends without harm if a thread does not freeze, so that there is a thread
 * that freezes when all devices can be frozen.
 */
#include <linux/device.h>
#include <linux/delay.h>
#include <linux/freezer.h>
#include <linux/kthread.h>
#include <linux/sched/mm.h>
#include <linux/virtio_config.h>

#include "virtio_msg_xen.h"

/* Interval of looking whether devices can be frozen, in ms. */
#define OBSTACLE_PAUSE 20

/* How long a device that is frozen may take for the requests that it has. */
#define DRAIN_TIMEOUT (10 * HZ)

static LIST_HEAD(xvm_suspend_devices);
/* Protects the list; while it is held, the virtio device of each stays. */
static DEFINE_MUTEX(xvm_suspend_lock);
/* For the answer of a device that is asked. */
static DECLARE_WAIT_QUEUE_HEAD(xvm_suspend_answered);
static struct task_struct *xvm_suspend_task;

/* Whether a driver that is frozen has buffers mapped that it unmaps later. */
static bool xvm_suspend_keeps_buffers(struct xvm_device *xvm)
{
	return shim_unmaps_buffers(xvm->virtio->vdev.id.device) &&
	       xvm_dma_mapped_pages(xvm);
}

/* Whether there is nothing to freeze: the device was given up, or is not connected yet. */
static bool xvm_suspend_is_idle(const struct xvm_device *xvm)
{
	return READ_ONCE(xvm->bus.broken) || xvm->frozen;
}

/* Waits for the requests that were made after this file's thread looked for some. */
static bool xvm_suspend_drain(struct xvm_device *xvm)
{
	unsigned long end = jiffies + DRAIN_TIMEOUT;

	if (!shim_waits_for_requests(xvm->virtio->vdev.id.device))
		return true;
	while (xvm_dma_mapped_pages(xvm) && !READ_ONCE(xvm->bus.broken)) {
		if (time_after(jiffies, end)) {
			xvm_fail(xvm, "requests do not end, and the guest is suspended");
			return false;
		}
		msleep(OBSTACLE_PAUSE);
	}
	return !READ_ONCE(xvm->bus.broken);
}

/*
 * Freezes a device, whose driver is not given an error, and ends its grants. All
 * processes of the guest are frozen, and no watch runs: nothing waits without a limit.
 */
static int xvm_suspend_freeze(struct device *dev)
{
	struct virtio_device *vdev = dev_to_virtio(dev);
	struct xvm_device *xvm = vdev_to_xvm(vdev);
	int err;

	if (xvm_suspend_is_idle(xvm))
		return 0;
	xvm_bus_set_running(xvm, false);
	if (!xvm_suspend_drain(xvm))
		return 0;
	xvm_traits_note(xvm);
	xvm->freezing = true;
	err = virtio_device_freeze(vdev);
	xvm->freezing = false;
	if (err) {
		xvm_fail(xvm, "its driver could not be frozen");
		return 0;
	}
	xvm->frozen = true;
	/* Entropy and vsock never unmap their buffers. Others may do so later. */
	if (xvm_suspend_keeps_buffers(xvm))
		xvm_fail(xvm, "its driver keeps buffers while the guest is suspended");
	else
		xvm_dma_close(xvm);
	return 0;
}

/*
 * Restores a device that was given up: its driver stops waiting and gets errors. The
 * requests for this go to no device (config.c, queue.c).
 */
static void xvm_suspend_restore_dead(struct xvm_device *xvm)
{
	struct virtio_device *vdev = &xvm->virtio->vdev;
	int err = 0;

	xvm->dead = true;
	xvm->dead_status = 0;
	/* Of a restore that failed. */
	if (xvm->queues)
		xvm_del_vqs(vdev);
	if (!xvm->dma.live)
		err = xvm_dma_open(xvm);
	if (!err)
		err = virtio_device_restore(vdev);
	if (err)
		dev_alert(&xvm->xdev->dev,
			  "cannot end %s (%d): whoever waits for it hangs until the guest reboots\n",
			  dev_name(&vdev->dev), err);
	virtio_break_device(vdev);
}

/* With the lock of the virtio device. */
static void xvm_suspend_restore_frozen(struct xvm_device *xvm)
{
	struct virtio_device *vdev = &xvm->virtio->vdev;
	unsigned int flags = memalloc_noio_save();
	int err = -EIO;

	xvm->frozen = false;
	xvm->reconnecting = false;
	xvm->restoring = true;
	/* Live: with buffers that the driver keeps. */
	if (!READ_ONCE(xvm->bus.broken) && !xvm->dma.live)
		err = xvm_dma_open(xvm);
	if (!err)
		err = virtio_device_restore(vdev);
	if (err) {
		xvm_fail(xvm, "its driver could not go on after a suspend");
		xvm_suspend_restore_dead(xvm);
	} else {
		xvm_bus_set_running(xvm, true);
	}
	xvm->restoring = false;
	memalloc_noio_restore(flags);
}

/* The suspend was cancelled. */
static int xvm_suspend_thaw(struct device *dev)
{
	struct xvm_device *xvm = vdev_to_xvm(dev_to_virtio(dev));

	if (xvm->frozen && !xvm->reconnecting)
		xvm_suspend_restore_frozen(xvm);
	return 0;
}

/* No operation for a restore: main.c makes a new connection first. */
static const struct dev_pm_ops xvm_suspend_ops = {
	.freeze = xvm_suspend_freeze,
	.thaw = xvm_suspend_thaw,
};

const struct device_type xvm_virtio_type = {
	.pm = &xvm_suspend_ops,
};

/* With the lock of the virtio device. A device that differs too much is given up. */
static void xvm_suspend_restore_connected(struct xvm_device *xvm)
{
	struct shim_traits found;

	/* What fails is given up. */
	xvm_traits_fit(xvm, &found, false);
	xvm_suspend_restore_frozen(xvm);
	if (!xvm->dead)
		xvm_traits_announce(xvm, &found);
}

/**
 * xvm_suspend_go_on() - let the driver of a frozen device go on with a new connection
 * @xvm: device, connected
 *
 * Return: 0, or a negative errno number if the device was given up.
 * Context: Process context. Waits for the device. Takes the virtio device's lock.
 */
int xvm_suspend_go_on(struct xvm_device *xvm)
{
	struct device *dev = &xvm->virtio->vdev.dev;

	device_lock(dev);
	if (xvm->frozen) {
		xvm_bus_set_broken(xvm, false);
		xvm_suspend_restore_connected(xvm);
	}
	device_unlock(dev);
	return xvm->dead || READ_ONCE(xvm->bus.broken) ? -EIO : 0;
}

/**
 * xvm_suspend_give_up() - let the driver of a frozen device go on with errors
 * @xvm: device, frozen or not; its virtio device is locked
 *
 * Context: Process context. Sleeps.
 */
void xvm_suspend_give_up(struct xvm_device *xvm)
{
	if (!xvm->frozen)
		return;
	dev_err(&xvm->xdev->dev,
		"the device did not return after the guest was restored or moved\n");
	xvm_bus_set_broken(xvm, true);
	xvm_suspend_restore_frozen(xvm);
}

/* What keeps a device from being frozen. NULL: nothing, if it answers. */
static const char *xvm_suspend_obstacle(struct xvm_device *xvm)
{
	struct device *dev;
	bool can_freeze;

	if (READ_ONCE(xvm->kept))
		return "it waits for another backend";
	if (xvm_suspend_is_idle(xvm))
		return NULL;
	dev = &xvm->virtio->vdev.dev;
	if (!device_trylock(dev))
		return "its driver is being bound or unbound";
	can_freeze = !dev->driver || drv_to_virtio(dev->driver)->freeze;
	device_unlock(dev);
	if (!can_freeze)
		return "its driver cannot be suspended";
	if (shim_waits_for_requests(xvm->virtio->vdev.id.device) &&
	    xvm_dma_mapped_pages(xvm))
		return "requests are unfinished";
	return NULL;
}

static void xvm_suspend_refused(struct xvm_device *xvm, const char *why)
{
	xenbus_dev_error(xvm->xdev, -EBUSY, "suspend refused: %s", why);
}

/*
 * Waits for as long as the backend of a device does not answer. Without the lock, which
 * other devices need; the device stays in the list.
 */
static void xvm_suspend_ask(struct xvm_device *xvm)
{
	struct shim_request get = { .kind = SHIM_GET_STATUS };
	struct shim_answer answer;

	WRITE_ONCE(xvm->asked, true);
	mutex_unlock(&xvm_suspend_lock);
	xvm_bus_request(xvm, &get, &answer, NULL, 0);
	if (!freezing(current))
		xvm_suspend_refused(xvm, "the backend did not answer");
	mutex_lock(&xvm_suspend_lock);
	WRITE_ONCE(xvm->asked, false);
	wake_up_all(&xvm_suspend_answered);
}

/* Whether all devices can be frozen. */
static bool xvm_suspend_is_possible(void)
{
	struct xvm_device *xvm;
	bool possible = true;

	mutex_lock(&xvm_suspend_lock);
	list_for_each_entry(xvm, &xvm_suspend_devices, suspending) {
		possible = !xvm_suspend_obstacle(xvm);
		if (!possible)
			break;
		if (!xvm_suspend_is_idle(xvm))
			xvm_suspend_ask(xvm);
	}
	mutex_unlock(&xvm_suspend_lock);
	return possible;
}

/* Logs why the devices were not frozen. */
static void xvm_suspend_report(void)
{
	struct xvm_device *xvm;
	const char *obstacle;

	mutex_lock(&xvm_suspend_lock);
	list_for_each_entry(xvm, &xvm_suspend_devices, suspending) {
		obstacle = xvm_suspend_obstacle(xvm);
		if (obstacle)
			xvm_suspend_refused(xvm, obstacle);
	}
	mutex_unlock(&xvm_suspend_lock);
}

/* Freezes this thread when all devices can be frozen, unless the suspend ends before. */
static void xvm_suspend_consent(void)
{
	while (freezing(current)) {
		/* Meanwhile the suspend may have ended. */
		if (xvm_suspend_is_possible() && try_to_freeze())
			return;
		msleep(OBSTACLE_PAUSE);
	}
	xvm_suspend_report();
}

static int xvm_suspend_thread(void *unused)
{
	set_freezable();
	while (!kthread_should_stop()) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (!kthread_should_stop() && !freezing(current))
			schedule();
		__set_current_state(TASK_RUNNING);
		if (freezing(current))
			xvm_suspend_consent();
	}
	return 0;
}

/**
 * xvm_suspend_enter() - have suspends wait for a device
 * @xvm: device, whose virtio device is registered
 *
 * Context: Process context. Sleeps.
 */
void xvm_suspend_enter(struct xvm_device *xvm)
{
	mutex_lock(&xvm_suspend_lock);
	list_add_tail(&xvm->suspending, &xvm_suspend_devices);
	mutex_unlock(&xvm_suspend_lock);
}

/**
 * xvm_suspend_leave() - have suspends not wait for a device any more
 * @xvm: device that waits for nothing, or not long
 *
 * Context: Process context. Sleeps.
 */
void xvm_suspend_leave(struct xvm_device *xvm)
{
	mutex_lock(&xvm_suspend_lock);
	while (xvm->asked) {
		mutex_unlock(&xvm_suspend_lock);
		wait_event(xvm_suspend_answered, !READ_ONCE(xvm->asked));
		mutex_lock(&xvm_suspend_lock);
	}
	list_del_init(&xvm->suspending);
	mutex_unlock(&xvm_suspend_lock);
}

/**
 * xvm_suspend_init() - start to take part in suspends
 *
 * Return: 0 or a negative errno number.
 */
int xvm_suspend_init(void)
{
	xvm_suspend_task = kthread_run(xvm_suspend_thread, NULL, "virtio_msg_xen");
	return PTR_ERR_OR_ZERO(xvm_suspend_task);
}

/**
 * xvm_suspend_exit() - undo xvm_suspend_init()
 *
 * Context: Process context, when no device is left.
 */
void xvm_suspend_exit(void)
{
	kthread_stop(xvm_suspend_task);
}
