// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * virtio-msg over Xen, driver side: the xenbus frontend [section 2].
 *
 * A watch on the backend's state starts a step, which looks up both states in the
 * core's table and carries out the action that it gives. The steps of a device run
 * one at a time in a workqueue, because registering a virtio device waits for
 * messages and for I/O. The first step is different: see xvm_begin().
 */
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/minmax.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <xen/xen.h>

#include "virtio_msg_xen.h"

/* How long an unbind waits for the backend to close. */
#define CLOSE_TIMEOUT (5 * HZ)

/* How long a restored guest's processes wait for a device, and how often it looks. */
#define CONNECT_TIMEOUT (5 * HZ)
#define CONNECT_PAUSE 10 /* ms */

/* A key that both sides write [2.11]. */
#define TRANSPORT_FEATURES "virtio-msg-transport-features"

/* Bytes of a backend's error message that are logged. */
#define LONGEST_REPORT 200u

static struct workqueue_struct *xvm_workqueue;

/* Checks the backend's keys [2.3]. */
static int xvm_read_keys(struct xvm_device *xvm, struct shim_negotiated *negotiated)
{
	static const char * const keys[] = {
		"virtio-msg-revision", "virtio-msg-max-size",
		"virtio-msg-bus-features",
	};
	struct xenbus_device *xdev = xvm->xdev;
	unsigned int values[ARRAY_SIZE(keys)];
	unsigned int i;
	int unfit;

	for (i = 0; i < ARRAY_SIZE(keys); i++)
		if (xenbus_scanf(XBT_NIL, xdev->otherend, keys[i], "%u",
				 &values[i]) != 1) {
			xenbus_dev_fatal(xdev, -ENOENT, "reading %s/%s",
					 xdev->otherend, keys[i]);
			return -ENOENT;
		}
	unfit = shim_negotiate(values[0], values[1], values[2], negotiated);
	if (unfit) {
		i = -unfit - 1;
		xenbus_dev_fatal(xdev, -EPROTO, "%s %u of the backend is not supported",
				 keys[i], values[i]);
		return -EPROTO;
	}
	return 0;
}

/* The transport features to use. A backend without the key offers none [2.11]. */
static u32 xvm_transport_features(const struct xenbus_device *xdev)
{
	return shim_transport_features(xenbus_read_unsigned(xdev->otherend,
							    TRANSPORT_FEATURES,
							    0));
}

/* Writes the frontend's keys [2.4]. */
static int xvm_write_keys(struct xvm_device *xvm)
{
	struct xenbus_device *xdev = xvm->xdev;
	int err;

	err = xenbus_printf(XBT_NIL, xdev->nodename, "message-page-ref", "%u",
			    xvm->bus.gref);
	if (!err)
		err = xenbus_printf(XBT_NIL, xdev->nodename, "event-channel",
				    "%u", xvm->bus.port);
	if (!err)
		err = xenbus_printf(XBT_NIL, xdev->nodename, TRANSPORT_FEATURES,
				    "%u", xvm_transport_features(xdev));
	if (err)
		xenbus_dev_fatal(xdev, err, "writing to %s", xdev->nodename);
	return err;
}

static int xvm_offer_page(struct xvm_device *xvm)
{
	struct shim_negotiated negotiated;
	int err;

	err = xvm_read_keys(xvm, &negotiated);
	if (err)
		return err;
	xvm_stray_remove(xvm);
	err = xvm_bus_open(xvm, &negotiated);
	if (err)
		return err;
	err = xvm_write_keys(xvm);
	if (err)
		return err;
	return xenbus_switch_state(xvm->xdev, XenbusStateInitialised);
}

/* SHIM_OFFER: offers the message page to the backend. */
static void xvm_offer(struct xvm_device *xvm)
{
	/* Devices behind this one must not wait for it if it cannot start. */
	if (xvm_offer_page(xvm))
		xvm_probe_order_leave(xvm);
}

static void xvm_release_virtio(struct device *dev)
{
	kfree(container_of(dev_to_virtio(dev), struct xvm_virtio, vdev));
}

static struct xvm_virtio *xvm_new_virtio(struct xvm_device *xvm)
{
	struct shim_request get = { .kind = SHIM_DEVICE_INFO };
	struct shim_answer info;
	struct xvm_virtio *virtio;
	int err;

	err = xvm_bus_request(xvm, &get, &info, NULL, 0);
	if (err)
		return ERR_PTR(err);
	virtio = kzalloc(sizeof(*virtio), GFP_KERNEL);
	if (!virtio)
		return ERR_PTR(-ENOMEM);
	virtio->xvm = xvm;
	memset(&xvm->traits, 0, sizeof(xvm->traits));
	xvm->traits.device_id = info.device_id;
	virtio->vdev.id.device = info.device_id;
	virtio->vdev.id.vendor = info.vendor_id;
	virtio->vdev.config = &xvm_config_ops;
	virtio->vdev.dev.parent = &xvm->xdev->dev;
	virtio->vdev.dev.type = &xvm_virtio_type;
	virtio->vdev.dev.release = xvm_release_virtio;
	return virtio;
}

static int xvm_register_virtio(struct xvm_device *xvm)
{
	struct xvm_virtio *virtio;
	int err;

	virtio = xvm_new_virtio(xvm);
	if (IS_ERR(virtio))
		return PTR_ERR(virtio);
	xvm->virtio = virtio;
	err = register_virtio_device(&virtio->vdev);
	if (err) {
		xvm->virtio = NULL;
		put_device(&virtio->vdev.dev);
		return err;
	}
	err = bus_register_notifier(virtio->vdev.dev.bus, &xvm->driver_events);
	if (err) {
		unregister_virtio_device(&virtio->vdev);
		xvm->virtio = NULL;
		return err;
	}
	/* A driver that was loaded before is bound already. */
	if (READ_ONCE(xvm->bus.driver_ok))
		xvm_bus_set_running(xvm, true);
	return 0;
}

/*
 * Called when any virtio device gets or loses its driver. A driver that is unbound
 * waits for its own work, which may wait for the device.
 */
static int xvm_driver_event(struct notifier_block *events, unsigned long event,
			    void *device)
{
	struct xvm_device *xvm = container_of(events, struct xvm_device, driver_events);

	if (device != &xvm->virtio->vdev.dev)
		return NOTIFY_DONE;
	switch (event) {
	case BUS_NOTIFY_BOUND_DRIVER:
		xvm_bus_set_running(xvm, true);
		break;
	case BUS_NOTIFY_UNBIND_DRIVER:
		/* First: after this, it does not begin to wait for another backend. */
		xvm_bus_set_running(xvm, false);
		xvm_suspend_give_up(xvm);
		xvm_reconnect_give_up(xvm);
		break;
	case BUS_NOTIFY_BIND_DRIVER:
		xvm_bus_set_running(xvm, false);
		break;
	}
	return NOTIFY_OK;
}

/* Notifies the virtio core of events during the registration of the device. */
static void xvm_catch_up(struct xvm_device *xvm)
{
	bool broken, changed;

	spin_lock_irq(&xvm->bus.lock);
	xvm->ready = true;
	broken = xvm->bus.broken;
	changed = xvm->bus.config_changed;
	spin_unlock_irq(&xvm->bus.lock);

	if (broken)
		schedule_work(&xvm->fault);
	else if (changed)
		virtio_config_changed(&xvm->virtio->vdev);
}

/* The driver goes on with the new connection. */
static void xvm_go_on(struct xvm_device *xvm)
{
	struct xenbus_device *xdev = xvm->xdev;
	int err;

	xenbus_switch_state(xdev, XenbusStateConnected);
	xvm_probe_order_leave(xvm);
	err = xvm->kept ? xvm_reconnect_go_on(xvm) : xvm_suspend_go_on(xvm);
	/* The driver waits on, for this backend to start again or for another. */
	if (err && xvm->kept)
		return;
	if (err) {
		xenbus_dev_fatal(xdev, err, "going on with another backend");
		return;
	}
	dev_info(&xdev->dev, "%s goes on, with domain %d\n",
		 dev_name(&xvm->virtio->vdev.dev), xdev->otherend_id);
}

/* SHIM_CONNECT: registers the virtio device. */
static void xvm_connect(struct xvm_device *xvm)
{
	struct xenbus_device *xdev = xvm->xdev;
	int err;

	if (xvm->ready) {
		xvm_go_on(xvm);
		return;
	}
	xenbus_switch_state(xdev, XenbusStateConnected);
	err = xvm_dma_open(xvm);
	if (!err) {
		xvm_probe_order_wait(xvm);
		err = xvm_register_virtio(xvm);
	}
	xvm_probe_order_leave(xvm);
	if (err) {
		xenbus_dev_fatal(xdev, err, "registering the virtio device");
		return;
	}
	xvm_catch_up(xvm);
	xvm_suspend_enter(xvm);
	dev_info(&xdev->dev, "%s is virtio device %u of domain %d, over grants%s\n",
		 dev_name(&xvm->virtio->vdev.dev), xvm->virtio->vdev.id.device,
		 xdev->otherend_id,
		 xvm->dma.bounce.pages ? ", bounced" : "");
	xvm_reconnect_announce(xvm);
}

/* Whether the device answers a request. If it does not, it is given up. */
static bool xvm_answers(struct xvm_device *xvm)
{
	struct shim_request get = { .kind = SHIM_GET_STATUS };
	struct shim_answer answer;

	return !xvm_bus_request(xvm, &get, &answer, NULL, 0);
}

/* Decides whether to remove the virtio device. Returns an enum shim_removal. */
static u32 xvm_removal(struct xvm_device *xvm, enum shim_backend_state backend)
{
	if (READ_ONCE(xvm->bus.broken))
		backend = SHIM_BACKEND_BROKEN;
	return shim_removal(xvm->virtio->vdev.id.device, xvm_dma_mapped_pages(xvm),
			    backend);
}

/* Whether removing the virtio device will end: its driver may wait for requests. */
static bool xvm_can_remove(struct xvm_device *xvm)
{
	enum shim_backend_state backend;
	u32 what;

	/* No new request is started after the virtio core is notified of a failure. */
	flush_work(&xvm->fault);
	what = xvm_removal(xvm, SHIM_BACKEND_OPEN);
	if (what == SHIM_ASK_DEVICE) {
		backend = xvm_answers(xvm) ? SHIM_BACKEND_ANSWERING : SHIM_BACKEND_BROKEN;
		flush_work(&xvm->fault);
		what = xvm_removal(xvm, backend);
	}
	return what == SHIM_REMOVE;
}

/*
 * Abandons a virtio device that cannot be removed. The device, its driver and this
 * module stay until the guest reboots; the grants of the device end.
 */
static void xvm_abandon(struct xvm_device *xvm)
{
	if (xvm->stuck)
		return;
	dev_alert(&xvm->xdev->dev,
		  "backend left requests unfinished (%u pages): whoever waits for them hangs, and %s stays dead until the guest reboots\n",
		  xvm_dma_mapped_pages(xvm), dev_name(&xvm->virtio->vdev.dev));
	xvm->stuck = true;
	__module_get(THIS_MODULE);
	xvm_dma_revoke_all(xvm);
}

/* Lets a driver that waits for its device go on with errors. */
static void xvm_give_up_waiting(struct xvm_device *xvm)
{
	device_lock(&xvm->virtio->vdev.dev);
	xvm_suspend_give_up(xvm);
	xvm_reconnect_give_up(xvm);
	device_unlock(&xvm->virtio->vdev.dev);
}

/* Unregisters a virtio device whose driver will not wait forever. */
static void xvm_unregister(struct xvm_device *xvm)
{
	/* Events may arrive until the event channel is closed. */
	get_device(&xvm->virtio->vdev.dev);
	unregister_virtio_device(&xvm->virtio->vdev);
	bus_unregister_notifier(xvm->virtio->vdev.dev.bus, &xvm->driver_events);
}

/*
 * Unregisters the virtio device. Returns false if its driver would wait forever:
 * then only the grants end.
 */
static bool xvm_stop_virtio(struct xvm_device *xvm)
{
	if (!xvm->ready)
		return true;
	xvm_suspend_leave(xvm);
	xvm_give_up_waiting(xvm);
	if (xvm->stuck || !xvm_can_remove(xvm)) {
		xvm_abandon(xvm);
		return false;
	}
	xvm_unregister(xvm);
	return true;
}

/* Frees everything that xvm_offer() and xvm_connect() have made so far. */
static void xvm_release(struct xvm_device *xvm)
{
	xvm_bus_close(xvm);
	cancel_work_sync(&xvm->fault);
	if (xvm->ready)
		put_device(&xvm->virtio->vdev.dev);
	xvm->ready = false;
	xvm->dead = false;
	xvm->virtio = NULL;
	xvm_dma_close(xvm);
}

/* Logs the error that a backend wrote before it left [2.6]. */
static void xvm_report_backend_error(const struct xenbus_device *xdev)
{
	unsigned int length;
	char *text;

	if (!xdev->otherend)
		return;
	text = xenbus_read(XBT_NIL, xdev->otherend, "error", &length);
	if (IS_ERR(text))
		return;
	/* Escaped and truncated, because the backend controls the text. */
	dev_err(&xdev->dev, "the backend says: %*pE\n",
		(int)min(length, LONGEST_REPORT), text);
	kfree(text);
}

/* SHIM_CLOSE: the backend has left. */
static void xvm_close(struct xvm_device *xvm)
{
	xvm_probe_order_leave(xvm);
	xvm_report_backend_error(xvm->xdev);
	if (xvm_stop_virtio(xvm))
		xvm_release(xvm);
	xenbus_frontend_closed(xvm->xdev);
}

/*
 * SHIM_FINISH: undoes a start that failed, or closes a device that the backend
 * refused, so that a guest that boots does not wait for it. While the guest shuts
 * down, only changes the state.
 */
static void xvm_finish(struct xvm_device *xvm)
{
	xvm_probe_order_leave(xvm);
	if (system_state <= SYSTEM_RUNNING && xvm_stop_virtio(xvm))
		xvm_release(xvm);
	xenbus_frontend_closed(xvm->xdev);
}

static enum xenbus_state xvm_backend_state(const struct xenbus_device *xdev)
{
	/* NULL if the guest was restored without the device. */
	if (!xdev->otherend)
		return XenbusStateUnknown;
	return compat_read_driver_state(xdev, xdev->otherend);
}

static bool xvm_backend_closed(struct xvm_device *xvm)
{
	enum xenbus_state state = READ_ONCE(xvm->backend);

	return state == XenbusStateClosed || state == XenbusStateUnknown;
}

/* Begins closing from this side [2.7]. Afterwards xenbus writes Closed. */
static void xvm_initiate_close(struct xvm_device *xvm)
{
	struct xenbus_device *xdev = xvm->xdev;

	if (xdev->state == XenbusStateInitialised ||
	    xdev->state == XenbusStateConnected)
		xenbus_switch_state(xdev, XenbusStateClosing);
	if (xdev->state != XenbusStateClosing)
		return;
	WRITE_ONCE(xvm->backend, xvm_backend_state(xdev));
	if (!wait_event_timeout(xvm->backend_changed, xvm_backend_closed(xvm),
				CLOSE_TIMEOUT))
		dev_warn(&xdev->dev, "backend has not closed, going on without it\n");
}

/*
 * The toolstack detaches a device that nobody uses. Whether the driver can go is found
 * out first: that may take long, and the toolstack may give up meanwhile.
 */
static void xvm_detach(struct xvm_device *xvm)
{
	if (!xvm_detach_allowed(xvm) || !xvm_can_remove(xvm) || !xvm_detach_allowed(xvm))
		return;
	xvm_probe_order_leave(xvm);
	xvm_suspend_leave(xvm);
	xvm_unregister(xvm);
	xvm_initiate_close(xvm);
	xvm_release(xvm);
	xenbus_frontend_closed(xvm->xdev);
}

/* Undoes the connection of a frozen device, whose driver waits. */
static void xvm_disconnect(struct xvm_device *xvm)
{
	xvm_bus_close(xvm);
	cancel_work_sync(&xvm->fault);
	WRITE_ONCE(xvm->restored, false);
}

/*
 * After a restore: undoes the old connection and begins a new one. The driver of a
 * frozen device waits meanwhile. A device that was given up comes back as a new one.
 */
static void xvm_restart(struct xvm_device *xvm)
{
	if (xvm->frozen) {
		xvm_disconnect(xvm);
	} else if (xvm_stop_virtio(xvm)) {
		xvm_release(xvm);
	} else {
		xvm_probe_order_leave(xvm);
		xenbus_frontend_closed(xvm->xdev);
		return;
	}
	WRITE_ONCE(xvm->restored, false);
	if (!xvm_watch_remind())
		return;
	xvm_probe_order_leave(xvm);
	dev_err(&xvm->xdev->dev,
		"no watch can be set to start the device anew: unbind and bind its driver\n");
}

/* Whether a step is done, since the device waits for another backend, or did in vain. */
static bool xvm_waits_on(struct xvm_device *xvm, u32 action)
{
	if (system_state > SYSTEM_RUNNING || !xvm->kept)
		return false;
	if (!xvm_reconnect_waits(xvm)) {
		xvm_close(xvm);
		return true;
	}
	/* A backend that is gone, or refuses, is not the last. */
	return xvm->kept && action != SHIM_CONNECT;
}

static void xvm_take_step(struct xvm_device *xvm)
{
	struct xenbus_device *xdev = xvm->xdev;
	u32 action;

	if (READ_ONCE(xvm->restored)) {
		if (system_state <= SYSTEM_RUNNING)
			xvm_restart(xvm);
		return;
	}
	action = shim_next_action(xdev->state, xvm_backend_state(xdev));
	/* While the guest shuts down, do not set up or close devices. */
	if (system_state > SYSTEM_RUNNING && action != SHIM_FINISH)
		return;
	if (xvm_waits_on(xvm, action))
		return;
	/* Gone since the watch last looked, which is about to begin the wait. */
	if (action == SHIM_CLOSE && xvm_reconnect_is_possible(xvm))
		return;

	switch (action) {
	case SHIM_CONNECT:
		xvm_connect(xvm);
		break;
	case SHIM_CLOSE:
		xvm_close(xvm);
		break;
	case SHIM_FINISH:
		xvm_finish(xvm);
		break;
	}
	if (xdev->state == XenbusStateConnected && xvm->ready && !xvm->frozen &&
	    !xvm->kept && !xvm->stuck)
		xvm_detach(xvm);
}

static void xvm_step(struct work_struct *work)
{
	struct xvm_device *xvm = container_of(work, struct xvm_device, step);
	unsigned int flags;

	if (!READ_ONCE(xvm->frozen) && !READ_ONCE(xvm->kept)) {
		xvm_take_step(xvm);
		return;
	}
	/* Memory may be written to the disk that waits for this. */
	flags = memalloc_noio_save();
	xvm_take_step(xvm);
	memalloc_noio_restore(flags);
}

/*
 * Enters Initialising and leaves it. Only in a watch: watches run one at a time, and
 * xenbus checks the device in one of its own. If the state is Initialising in
 * XenStore but not in struct xenbus_device, xenbus (since 7.0) assumes that another
 * device has replaced this one.
 */
static void xvm_begin(struct xvm_device *xvm, enum xenbus_state backend)
{
	struct xenbus_device *xdev = xvm->xdev;

	/* The device may have had a driver before: start again [2.9]. */
	if (!xvm->begun)
		xenbus_switch_state(xdev, XenbusStateInitialising);
	xvm->begun = true;
	if (shim_next_action(xdev->state, backend) == SHIM_OFFER &&
	    system_state <= SYSTEM_RUNNING)
		xvm_offer(xvm);
}

/* Ends all waiting for a backend that has left. */
static void xvm_fail_if_backend_left(struct xvm_device *xvm, enum xenbus_state backend)
{
	if (shim_next_action(xvm->xdev->state, backend) == SHIM_CLOSE)
		xvm_fail(xvm, "the backend left");
}

/* Called in a watch: the backend's state may have changed. */
static void xvm_backend_changed(struct xvm_device *xvm)
{
	enum xenbus_state state = xvm_backend_state(xvm->xdev);
	unsigned int flags;

	WRITE_ONCE(xvm->backend, state);
	wake_up(&xvm->backend_changed);
	if (state != XenbusStateUnknown || !xvm_reconnect_begin(xvm))
		xvm_fail_if_backend_left(xvm, state);
	flags = memalloc_noio_save();
	mutex_lock(&xvm->beginning);
	if (!xvm->removing) {
		if (!READ_ONCE(xvm->restored) && xvm_reconnect_is_offered(xvm, state))
			xvm_begin(xvm, state);
		queue_work(xvm_workqueue, &xvm->step);
	}
	mutex_unlock(&xvm->beginning);
	memalloc_noio_restore(flags);
}

static int xvm_probe(struct xenbus_device *xdev,
		     const struct xenbus_device_id *id)
{
	struct xvm_device *xvm;
	int err;

	if (dev_get_platdata(&xdev->dev)) {
		xenbus_dev_error(xdev, -EBUSY,
				 "an earlier connection has unfinished requests; reboot the guest to use the device");
		return -EBUSY;
	}
	xvm = kzalloc(sizeof(*xvm), GFP_KERNEL);
	if (!xvm)
		return -ENOMEM;
	xvm->xdev = xdev;
	INIT_WORK(&xvm->step, xvm_step);
	mutex_init(&xvm->beginning);
	init_waitqueue_head(&xvm->backend_changed);
	INIT_LIST_HEAD(&xvm->suspending);
	xvm->driver_events.notifier_call = xvm_driver_event;
	xvm_probe_order_init(xvm);
	xvm_fault_init(xvm);
	xvm_watch_init(xvm, xvm_backend_changed);
	xvm_bus_init(xvm, xvm_queue_used);
	xvm_pool_init(xvm);
	dev_set_drvdata(&xdev->dev, xvm);
	xvm_reconnect_enter(xvm, xvm_workqueue);
	xvm_probe_order_enter(xvm);
	xvm_bus_reserve(xvm);

	err = xvm_watch_enter(xvm);
	if (err) {
		xenbus_dev_fatal(xdev, err, "watching %s", xdev->otherend);
		xvm_bus_unreserve(xvm);
		xvm_probe_order_leave(xvm);
		xvm_reconnect_leave(xvm);
		dev_set_drvdata(&xdev->dev, NULL);
		kfree(xvm);
	}
	return err;
}

static void xvm_remove(struct xenbus_device *xdev)
{
	struct xvm_device *xvm = dev_get_drvdata(&xdev->dev);
	bool stopped;

	mutex_lock(&xvm->beginning);
	WRITE_ONCE(xvm->removing, true);
	mutex_unlock(&xvm->beginning);
	xvm_bus_set_running(xvm, false);
	xvm_probe_order_leave(xvm);
	/* This runs in a watch of xenbus, before the one of watch.c. */
	xvm_fail_if_backend_left(xvm, xvm_backend_state(xdev));
	cancel_delayed_work_sync(&xvm->keeping);
	cancel_work_sync(&xvm->step);
	xvm_reconnect_leave(xvm);
	stopped = xvm_stop_virtio(xvm);
	if (stopped)
		xvm_initiate_close(xvm);
	xvm_watch_leave(xvm);
	xvm_bus_unreserve(xvm);
	if (!stopped)
		return;
	xvm_release(xvm);
	kfree(xvm);
}

/* Called in a watch of xenbus, for the first time after the probe. */
static void xvm_otherend_changed(struct xenbus_device *xdev,
				 enum xenbus_state state)
{
	xvm_backend_changed(dev_get_drvdata(&xdev->dev));
}

/*
 * Whether the boot can go on. While xenbus registers the driver, it calls this when it
 * has probed all devices.
 */
static int xvm_is_ready(struct xenbus_device *xdev)
{
	struct xvm_device *xvm = dev_get_drvdata(&xdev->dev);

	xvm_probe_order_all_found();
	return xvm && READ_ONCE(xvm->ready);
}

/* Connects, unless the backend has left. Returns whether there is anything to wait for. */
static bool xvm_try_connect(struct xvm_device *xvm)
{
	enum xenbus_state backend = xvm_backend_state(xvm->xdev);

	WRITE_ONCE(xvm->backend, backend);
	mutex_lock(&xvm->beginning);
	xvm_begin(xvm, backend);
	mutex_unlock(&xvm->beginning);
	switch (shim_next_action(xvm->xdev->state, backend)) {
	case SHIM_CONNECT:
		xvm_connect(xvm);
		return false;
	case SHIM_CLOSE:
	case SHIM_FINISH:
		return false;
	default:
		return true;
	}
}

/*
 * Connects while the guest's processes are frozen: drivers other than those of disks do
 * not expect to be used before they are restored. The toolstack has set up the backend
 * before the guest runs. A device that does not come back in time is closed.
 */
static void xvm_connect_now(struct xvm_device *xvm)
{
	unsigned long end = jiffies + CONNECT_TIMEOUT;

	xvm_disconnect(xvm);
	while (xvm_try_connect(xvm) && time_before(jiffies, end))
		msleep(CONNECT_PAUSE);
	if (!xvm->frozen)
		return;
	xvm_give_up_waiting(xvm);
	xenbus_dev_fatal(xvm->xdev, -ETIMEDOUT, "going on after a restore");
}

static bool xvm_can_wait_frozen(const struct xvm_device *xvm)
{
	return shim_waits_for_requests(xvm->virtio->vdev.id.device);
}

/*
 * The guest was restored or migrated. It has a new backend, which knows nothing of the
 * old connection. Called in the thread that runs the watches, before the workqueue is
 * thawed.
 */
static int xvm_resume(struct xenbus_device *xdev)
{
	struct xvm_device *xvm = dev_get_drvdata(&xdev->dev);
	unsigned int flags = memalloc_noio_save();
	int err;

	xvm->reconnecting = xvm->frozen;
	if (xvm->frozen)
		xvm_bus_set_broken(xvm, true);
	else
		xvm_fail(xvm, "the guest was restored or moved, and this device was not suspended");
	WRITE_ONCE(xvm->restored, true);
	xvm_watch_leave(xvm);
	err = xvm_watch_enter(xvm);
	if (err)
		xenbus_dev_error(xdev, err, "watching %s", xdev->otherend);
	/* Devices are registered in this order, as after a probe. */
	xvm_probe_order_enter(xvm);
	xvm_bus_reserve(xvm);
	if (!err && xvm->frozen && !xvm_can_wait_frozen(xvm))
		xvm_connect_now(xvm);
	queue_work(xvm_workqueue, &xvm->step);
	memalloc_noio_restore(flags);
	return err;
}

static const struct xenbus_device_id xvm_ids[] = {
	{ "virtio_disk" },
	{ "virtio" },
	{ "" },
};

static struct xenbus_driver xvm_driver = {
	.name = "virtio_msg_xen",
	.ids = xvm_ids,
	.not_essential = true,
	.probe = xvm_probe,
	.remove = xvm_remove,
	.resume = xvm_resume,
	.otherend_changed = xvm_otherend_changed,
	.is_ready = xvm_is_ready,
	.driver.dev_groups = xvm_groups,
};

static int __init xvm_init(void)
{
	int err;

	if (!xen_domain())
		return -ENODEV;
	err = xvm_bounce_init();
	if (err)
		return err;
	err = xvm_debug_init();
	if (err)
		return err;
	err = xvm_suspend_init();
	if (err)
		return err;
	err = xvm_reconnect_init();
	if (err)
		goto suspend_exit;
	/* Freezable: devices are not set up or closed while the guest is suspended. */
	xvm_workqueue = alloc_workqueue("virtio_msg_xen",
					WQ_UNBOUND | WQ_FREEZABLE, 0);
	err = -ENOMEM;
	if (!xvm_workqueue)
		goto reconnect_exit;
	err = xenbus_register_frontend(&xvm_driver);
	xvm_probe_order_all_found();
	if (!err)
		return 0;

	destroy_workqueue(xvm_workqueue);
reconnect_exit:
	xvm_reconnect_exit();
suspend_exit:
	xvm_suspend_exit();
	return err;
}
module_init(xvm_init);

static void __exit xvm_exit(void)
{
	xenbus_unregister_driver(&xvm_driver);
	xvm_watch_exit();
	destroy_workqueue(xvm_workqueue);
	xvm_reconnect_exit();
	xvm_suspend_exit();
}
module_exit(xvm_exit);

MODULE_DESCRIPTION("virtio-msg over Xen: a virtio transport with grants");
MODULE_VERSION("0.1.0");
MODULE_LICENSE("Dual MIT/GPL");
MODULE_ALIAS("xen:virtio_disk");
MODULE_ALIAS("xen:virtio");
