// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * The domain of a backend is gone, a driver domain that reboots for example: the driver
 * waits until the toolstack names another backend, and goes on with it [2.16].
 *
 * Unlike in a suspend (suspend.c), the driver is not told: it keeps its queues, and its
 * buffers stay mapped. Their grants move to the other domain, with the same references,
 * and the device does again what it had not given back. Of a disk, no request is made
 * meanwhile.
 *
 * The watch of the backend begins this, and a watch of all frontends follows to the next
 * backend; the steps of main.c do the rest. The mutex beginning keeps both apart. A step
 * never waits for a watch: a watch may wait for the step.
 */
#include <linux/blk-mq.h>
#include <linux/delay.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>
#include <uapi/linux/virtio_ids.h>

#include "virtio_msg_xen.h"

/* The frontend's key while it waits [2.16]. */
#define AWAITED "backend-awaited"

/* Intervals of looking for another backend, and of starting anew with one. */
#define LOOK_PAUSE (2 * HZ)
#define START_PAUSE HZ

/* How long a domain that ends may use grants, and how often it is asked. */
#define MOVE_TIMEOUT (5 * HZ)
#define MOVE_PAUSE 10 /* ms */

static LIST_HEAD(xvm_movable);
/* Protects the list; while it is held, the devices stay. */
static DEFINE_MUTEX(xvm_movable_lock);

/* The path of an earlier backend, which others may still read. */
struct xvm_path {
	struct list_head list;
	const char *path;
};

static bool xvm_reconnect_is_disk(const struct xvm_device *xvm)
{
	return xvm->traits.device_id == VIRTIO_ID_BLOCK;
}

/* The device's type is in the traits from the start. */
static bool xvm_reconnect_is_wanted(const struct xvm_device *xvm)
{
	return xvm_reconnect_seconds && xvm->ready && !xvm->stuck && !xvm->dead &&
	       !xvm->frozen && (xvm_reconnect_is_disk(xvm) ||
				xvm->traits.device_id == VIRTIO_ID_NET);
}

/* Under the bus lock. */
static bool xvm_reconnect_can_begin(const struct xvm_device *xvm)
{
	return xvm_reconnect_is_wanted(xvm) && !xvm->removing && !xvm->bus.broken &&
	       xvm->bus.running;
}

/**
 * xvm_reconnect_is_possible() - whether the driver can wait for another backend
 * @xvm: device whose backend may have left
 *
 * Return: true also if it waits already, false if it was given up.
 * Context: Any context. Takes the bus lock.
 */
bool xvm_reconnect_is_possible(struct xvm_device *xvm)
{
	unsigned long flags;
	bool possible;

	spin_lock_irqsave(&xvm->bus.lock, flags);
	possible = xvm->kept || xvm_reconnect_can_begin(xvm);
	spin_unlock_irqrestore(&xvm->bus.lock, flags);
	return possible;
}

/**
 * xvm_reconnect_announce() - log a device that will not wait, although the user wants it
 * @xvm: device that was just connected
 */
void xvm_reconnect_announce(struct xvm_device *xvm)
{
	if (xvm_reconnect_seconds && xvm->xdev->otherend_id && !xvm->bus.movable)
		dev_info(&xvm->xdev->dev,
			 "will not wait for another backend: this one does not offer it\n");
}

/* A domain that ends leaves nothing of its backends' directories. */
static bool xvm_reconnect_is_gone(const struct xenbus_device *xdev)
{
	return xdev->otherend_id && !xenbus_exists(XBT_NIL, xdev->otherend, "frontend");
}

/* Notes that the driver waits, unless it is being unbound: see xvm_bus_set_running(). */
static bool xvm_reconnect_keep(struct xvm_device *xvm)
{
	struct xvm_bus *bus = &xvm->bus;
	bool kept;

	spin_lock_irq(&bus->lock);
	kept = xvm_reconnect_can_begin(xvm) &&
	       (!xvm_reconnect_is_disk(xvm) || xvm_unfinished_are_known(xvm));
	if (kept) {
		WRITE_ONCE(xvm->kept, true);
		bus->broken = true;
	}
	spin_unlock_irq(&bus->lock);
	wake_up_all(&bus->wait);
	return kept;
}

/**
 * xvm_reconnect_begin() - have the driver wait, if the backend's domain is gone
 * @xvm: device in state Connected whose backend has no state
 *
 * Return: Whether the driver waits.
 * Context: Process context, in a watch. Sleeps.
 */
bool xvm_reconnect_begin(struct xvm_device *xvm)
{
	struct device *dev = &xvm->xdev->dev;

	if (READ_ONCE(xvm->kept))
		return true;
	if (!xvm_reconnect_is_possible(xvm) || !xvm_reconnect_is_gone(xvm->xdev))
		return false;
	if (!xvm->bus.movable) {
		dev_warn(dev, "the backend's domain is gone, and the device does not wait for another\n");
		return false;
	}
	xvm->overdue = false;
	xvm->not_before = jiffies;
	xvm->kept_until = jiffies + xvm_reconnect_seconds * HZ;
	if (!xvm_reconnect_keep(xvm))
		return false;
	schedule_delayed_work(&xvm->keeping, LOOK_PAUSE);
	dev_warn(dev, "the backend's domain %u is gone: waiting up to %u s for another one\n",
		 xvm->xdev->otherend_id, xvm_reconnect_seconds);
	return true;
}

/* Tells the toolstack, and has the watch look at the paths. */
static void xvm_reconnect_ask(struct xvm_device *xvm)
{
	/* What fails is repeated. */
	xenbus_printf(XBT_NIL, xvm->xdev->nodename, AWAITED, "%u", 1);
}

/* Whether no other backend came in time. */
static bool xvm_reconnect_is_overdue(struct xvm_device *xvm)
{
	spin_lock_irq(&xvm->bus.lock);
	xvm->overdue = xvm->kept && time_after_eq(jiffies, xvm->kept_until);
	spin_unlock_irq(&xvm->bus.lock);
	return xvm->overdue;
}

/*
 * Looks again, in case something failed, or at last gives up. A driver that spins for an
 * answer may keep the next step from running, so that its queues are broken here.
 */
static void xvm_reconnect_keep_on(struct work_struct *work)
{
	struct xvm_device *xvm = container_of(to_delayed_work(work), struct xvm_device,
					      keeping);

	if (READ_ONCE(xvm->removing) || !READ_ONCE(xvm->kept))
		return;
	if (xvm_reconnect_is_overdue(xvm)) {
		virtio_break_device(&xvm->virtio->vdev);
		queue_work(xvm->steps, &xvm->step);
		return;
	}
	if (READ_ONCE(xvm->parted))
		xvm_reconnect_ask(xvm);
	schedule_delayed_work(&xvm->keeping, LOOK_PAUSE);
}

/* Keeps the driver of a disk from making requests. */
static int xvm_reconnect_hold(struct xvm_device *xvm)
{
	if (!xvm_reconnect_is_disk(xvm))
		return 0;
	xvm->held = xvm_disk_find(xvm);
	if (!xvm->held)
		return -ENODEV;
	blk_mq_quiesce_queue(xvm->held->queue);
	return 0;
}

static void xvm_reconnect_release(struct xvm_device *xvm)
{
	if (!xvm->held)
		return;
	blk_mq_unquiesce_queue(xvm->held->queue);
	put_disk(xvm->held);
	xvm->held = NULL;
}

/* Undoes the connection, but for the buffers. */
static int xvm_reconnect_part(struct xvm_device *xvm)
{
	int err = xvm_reconnect_hold(xvm);

	if (err)
		return err;
	/* Drivers notify under RCU: none still uses an event channel. */
	synchronize_rcu();
	mutex_lock(&xvm->beginning);
	xvm_traits_note(xvm);
	xvm_pool_pause(xvm);
	xvm_disconnect_vqs(xvm);
	xvm_bus_close(xvm);
	cancel_work_sync(&xvm->fault);
	xvm->parted = true;
	mutex_unlock(&xvm->beginning);
	return 0;
}

/**
 * xvm_reconnect_waits() - undo the connection to a backend whose domain is gone
 * @xvm: device after xvm_reconnect_begin()
 *
 * Return: false if the device is to be closed, since no other backend can be awaited.
 * Context: Process context. Sleeps. Takes the virtio device's lock.
 */
bool xvm_reconnect_waits(struct xvm_device *xvm)
{
	struct device *dev = &xvm->virtio->vdev.dev;
	bool parts, waits;
	int err = 0;

	device_lock(dev);
	parts = xvm->kept && !xvm->parted;
	if (parts)
		err = xvm_reconnect_part(xvm);
	if (parts && !err)
		xvm_reconnect_ask(xvm);
	waits = !xvm->kept || (!err && !READ_ONCE(xvm->overdue));
	device_unlock(dev);
	if (err)
		dev_err(&xvm->xdev->dev, "cannot wait for another backend (%d)\n", err);
	return waits;
}

/*
 * Reads the backend's path and domain, as the toolstack wrote them together, and the
 * frontend's state, which it may have changed.
 */
static char *xvm_reconnect_read(const struct xenbus_device *xdev, int *id, int *state)
{
	struct xenbus_transaction xbt;
	char *path;
	int err, ended;

	do {
		if (xenbus_transaction_start(&xbt))
			return NULL;
		err = xenbus_gather(xbt, xdev->nodename, "backend-id", "%i", id,
				    "state", "%i", state, "backend", NULL, &path,
				    NULL);
		ended = xenbus_transaction_end(xbt, 0);
		if (!err && ended)
			kfree(path);
	} while (ended == -EAGAIN);
	return err || ended ? NULL : path;
}

/* Notes the present path, which is freed with the device. */
static int xvm_reconnect_keep_path(struct xvm_device *xvm)
{
	struct xvm_path *earlier = kmalloc(sizeof(*earlier), GFP_KERNEL);

	if (!earlier)
		return -ENOMEM;
	earlier->path = xvm->xdev->otherend;
	list_add(&earlier->list, &xvm->paths);
	return 0;
}

/*
 * Goes over to another backend. In a watch: xenbus uses path and domain in its own.
 * Under the mutex beginning. Does nothing if the backend is the same.
 */
static void xvm_reconnect_follow(struct xvm_device *xvm)
{
	struct xenbus_device *xdev = xvm->xdev;
	int id = 0, state = 0;
	char *path;

	path = xvm_reconnect_read(xdev, &id, &state);
	if (!path)
		return;
	if ((strcmp(path, xdev->otherend) == 0 && id == xdev->otherend_id) ||
	    id < 0 || id >= DOMID_FIRST_RESERVED || xvm_reconnect_keep_path(xvm)) {
		kfree(path);
		return;
	}
	/* Of a backend that has gone as well, before it was connected. */
	xvm_bus_close(xvm);
	WRITE_ONCE(xdev->otherend, path);
	xvm_dma_set_domain(xvm, id);
	xdev->state = state;
	xvm->again = true;
	xvm_watch_leave(xvm);
}

/* Watches the backend, if that is not so yet. Under the mutex beginning. */
static void xvm_reconnect_watch_backend(struct xvm_device *xvm)
{
	if (!xvm->watch && xvm_watch_enter(xvm))
		dev_warn_ratelimited(&xvm->xdev->dev, "cannot watch %s: trying again\n",
				     xvm->xdev->otherend);
}

static void xvm_reconnect_look(struct xvm_device *xvm)
{
	unsigned int flags = memalloc_noio_save();

	mutex_lock(&xvm->beginning);
	if (xvm->kept && xvm->parted && !xvm->removing) {
		xvm_reconnect_follow(xvm);
		xvm_reconnect_watch_backend(xvm);
	}
	mutex_unlock(&xvm->beginning);
	memalloc_noio_restore(flags);
	if (READ_ONCE(xvm->ready))
		xvm->watch_changed(xvm);
}

/* Whether a change at path may have named another backend, or asks for a look. */
static bool xvm_reconnect_concerns(const char *path, const char *nodename)
{
	size_t length = strlen(nodename);

	if (strncmp(path, nodename, length) || path[length] != '/')
		return false;
	path += length + 1;
	return strcmp(path, "backend") == 0 || strcmp(path, "backend-id") == 0 ||
	       strcmp(path, AWAITED) == 0;
}

static void xvm_reconnect_fired(struct xenbus_watch *watch, const char *path,
				const char *token)
{
	struct xvm_device *xvm;

	mutex_lock(&xvm_movable_lock);
	list_for_each_entry(xvm, &xvm_movable, movable)
		if (xvm_reconnect_concerns(path, xvm->xdev->nodename))
			xvm_reconnect_look(xvm);
	mutex_unlock(&xvm_movable_lock);
}

/**
 * xvm_reconnect_is_offered() - whether the frontend may start with its backend
 * @xvm: device
 * @backend: state of the backend
 *
 * A frontend that waits starts anew whenever a backend is ready for it, or has ended a
 * connection that failed.
 *
 * Return: Whether xvm_begin() may run.
 * Context: Process context, in a watch, under the mutex beginning. Sleeps.
 */
bool xvm_reconnect_is_offered(struct xvm_device *xvm, enum xenbus_state backend)
{
	bool starts = backend == XenbusStateInitWait || backend == XenbusStateClosed;

	if (!xvm->kept)
		return true;
	if (!xvm->parted || !xvm->watch)
		return false;
	/* A backend that is connected, or was, ends that when the frontend starts anew. */
	starts |= xvm->again && backend == XenbusStateConnected;
	if (!starts || (!xvm->again && xvm->xdev->state == XenbusStateInitialising))
		return starts;
	if (time_before(jiffies, xvm->not_before))
		return false;
	xvm->not_before = jiffies + START_PAUSE;
	xvm_bus_close(xvm);
	xvm->again = false;
	xvm->begun = false;
	return true;
}

/* Sets the device up as the driver did, with the driver's queues. */
static int xvm_reconnect_set_up(struct xvm_device *xvm)
{
	struct virtio_device *vdev = &xvm->virtio->vdev;
	struct shim_request features = {
		.kind = SHIM_SET_FEATURES,
		.features = vdev->features,
	};
	u8 status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
	struct shim_answer answer;
	int err;

	vdev->config->set_status(vdev, status);
	err = xvm_bus_request(xvm, &features, &answer, NULL, 0);
	if (err)
		return err;
	status |= VIRTIO_CONFIG_S_FEATURES_OK;
	vdev->config->set_status(vdev, status);
	if (!(vdev->config->get_status(vdev) & VIRTIO_CONFIG_S_FEATURES_OK))
		return READ_ONCE(xvm->bus.broken) ? -EIO : -ENODEV;
	err = xvm_pool_share_again(xvm);
	if (!err)
		err = xvm_connect_vqs(xvm);
	if (err)
		return err;
	vdev->config->set_status(vdev, status | VIRTIO_CONFIG_S_DRIVER_OK);
	return READ_ONCE(xvm->bus.broken) ? -EIO : 0;
}

/* Moves all grants. A domain that is being destroyed may still use some. */
static int xvm_reconnect_move_grants(struct xvm_device *xvm)
{
	unsigned long end = jiffies + MOVE_TIMEOUT;
	int err;

	while ((err = xvm_dma_move(xvm) ?: xvm_pool_move(xvm)) == -EBUSY &&
	       time_before(jiffies, end))
		msleep(MOVE_PAUSE);
	return err;
}

/* With the lock of the virtio device and the mutex beginning, connected. */
static int xvm_reconnect_move(struct xvm_device *xvm, struct shim_traits *found)
{
	int err;

	if (!xvm->bus.movable)
		return -EOPNOTSUPP;
	xvm_bus_set_broken(xvm, false);
	err = xvm_traits_fit(xvm, found, true);
	if (!err)
		err = xvm_reconnect_move_grants(xvm);
	if (err)
		return err;
	/* A backend that failed before may have given something back. */
	xvm_disconnect_vqs(xvm);
	if (xvm->held)
		err = xvm_unfinished_list_again(xvm);
	if (err < 0)
		return -ENODATA;
	if (err)
		dev_info(&xvm->xdev->dev, "%d requests are done again\n", err);
	return xvm_reconnect_set_up(xvm);
}

/* The driver goes on, unless the device failed again or it is too late. */
static int xvm_reconnect_end(struct xvm_device *xvm)
{
	struct xvm_bus *bus = &xvm->bus;
	int err = 0;

	spin_lock_irq(&bus->lock);
	if (bus->broken)
		err = -EIO;
	else if (xvm->overdue)
		err = -ETIME;
	if (!err) {
		xvm->parted = false;
		WRITE_ONCE(xvm->kept, false);
		WRITE_ONCE(bus->running, true);
	}
	spin_unlock_irq(&bus->lock);
	if (err)
		return err;
	cancel_delayed_work(&xvm->keeping);
	xvm_reconnect_release(xvm);
	xvm_notify_vqs(xvm);
	return 0;
}

/* With the lock of the virtio device. */
static int xvm_reconnect_try(struct xvm_device *xvm)
{
	unsigned int flags = memalloc_noio_save();
	struct shim_traits found;
	int err;

	mutex_lock(&xvm->beginning);
	err = xvm_reconnect_move(xvm, &found);
	if (!err)
		err = xvm_reconnect_end(xvm);
	if (!err) {
		xvm_traits_announce(xvm, &found);
	} else {
		xvm_bus_set_broken(xvm, true);
		xvm_pool_pause(xvm);
		xvm_disconnect_vqs(xvm);
		xvm->again = true;
	}
	mutex_unlock(&xvm->beginning);
	memalloc_noio_restore(flags);
	return err;
}

/* Whether it is worth another try: the backend did not answer, or is gone. */
static bool xvm_reconnect_is_temporary(int err)
{
	return err == -EIO || err == -ETIMEDOUT || err == -EBUSY;
}

/**
 * xvm_reconnect_go_on() - let the driver go on with another backend
 * @xvm: device, connected
 *
 * Return: 0, or a negative errno number if the device was given up or waits on.
 * Context: Process context. Waits for the device. Takes the virtio device's lock.
 */
int xvm_reconnect_go_on(struct xvm_device *xvm)
{
	struct device *dev = &xvm->virtio->vdev.dev;
	int err = -EIO;

	device_lock(dev);
	if (xvm->kept)
		err = xvm_reconnect_try(xvm);
	if (err && xvm->kept && !xvm_reconnect_is_temporary(err))
		xvm_reconnect_give_up(xvm);
	device_unlock(dev);
	/* Fires the watch, which finds a backend that has left meanwhile. */
	if (!err)
		xenbus_rm(XBT_NIL, xvm->xdev->nodename, AWAITED);
	else if (xvm->kept)
		xvm_reconnect_ask(xvm);
	return err;
}

/* Ends the wait. The frontend does not begin with another backend any more. */
static void xvm_reconnect_stop(struct xvm_device *xvm)
{
	enum xenbus_state state;

	mutex_lock(&xvm->beginning);
	state = xvm->xdev->state;
	if (state == XenbusStateInitialising || state == XenbusStateInitialised)
		xenbus_switch_state(xvm->xdev, XenbusStateClosing);
	xvm->parted = false;
	WRITE_ONCE(xvm->kept, false);
	mutex_unlock(&xvm->beginning);
}

/**
 * xvm_reconnect_give_up() - let a driver that waits go on with errors
 * @xvm: device, waiting or not; its virtio device is locked
 *
 * Context: Process context. Sleeps.
 */
void xvm_reconnect_give_up(struct xvm_device *xvm)
{
	if (!xvm->kept)
		return;
	dev_err(&xvm->xdev->dev, "device given up: no other backend goes on with it\n");
	xvm_bus_set_broken(xvm, true);
	virtio_break_device(&xvm->virtio->vdev);
	/* Drivers add buffers under spinlocks: wait until none still does. */
	synchronize_rcu();
	xvm_reconnect_stop(xvm);
	xvm_reconnect_release(xvm);
	cancel_delayed_work_sync(&xvm->keeping);
	xenbus_rm(XBT_NIL, xvm->xdev->nodename, AWAITED);
	/* Closes what it had begun with another backend. */
	if (!READ_ONCE(xvm->removing))
		queue_work(xvm->steps, &xvm->step);
}

/**
 * xvm_reconnect_enter() - prepare a device for xvm_reconnect_begin()
 * @xvm: device
 * @steps: workqueue of its steps
 *
 * Context: Process context. Sleeps.
 */
void xvm_reconnect_enter(struct xvm_device *xvm, struct workqueue_struct *steps)
{
	INIT_DELAYED_WORK(&xvm->keeping, xvm_reconnect_keep_on);
	INIT_LIST_HEAD(&xvm->paths);
	spin_lock_init(&xvm->dma.frames_lock);
	xvm->steps = steps;
	mutex_lock(&xvm_movable_lock);
	list_add(&xvm->movable, &xvm_movable);
	mutex_unlock(&xvm_movable_lock);
}

/**
 * xvm_reconnect_leave() - undo xvm_reconnect_enter()
 * @xvm: device that is being removed, and runs no step
 *
 * Context: Process context. Sleeps.
 */
void xvm_reconnect_leave(struct xvm_device *xvm)
{
	struct xvm_path *earlier, *next;

	mutex_lock(&xvm_movable_lock);
	list_del(&xvm->movable);
	mutex_unlock(&xvm_movable_lock);
	list_for_each_entry_safe(earlier, next, &xvm->paths, list) {
		kfree(earlier->path);
		kfree(earlier);
	}
	INIT_LIST_HEAD(&xvm->paths);
}

/* One watch for all devices: XenStore allows a guest 128. */
static struct xenbus_watch xvm_frontends_watch = {
	.node = "device",
	.callback = xvm_reconnect_fired,
};

/**
 * xvm_reconnect_init() - watch for other backends, if devices may wait for them
 *
 * Return: 0 or a negative errno number.
 * Context: Process context. Sleeps.
 */
int xvm_reconnect_init(void)
{
	return xvm_reconnect_seconds ? register_xenbus_watch(&xvm_frontends_watch) : 0;
}

/**
 * xvm_reconnect_exit() - undo xvm_reconnect_init()
 *
 * Context: Process context, when no device is left.
 */
void xvm_reconnect_exit(void)
{
	if (xvm_reconnect_seconds)
		unregister_xenbus_watch(&xvm_frontends_watch);
}
