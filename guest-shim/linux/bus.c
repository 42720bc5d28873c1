// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * The message page and its event channel: sends requests and waits for the answers,
 * sends and handles events [sections 4 and 5].
 *
 * While a device is running, a request waits for as long as the backend is connected:
 * another process may take the backend's part over [2.13]. Whoever makes the device stop
 * running ends that.
 *
 * Only the core reads and writes the message page.
 */
#include <linux/interrupt.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <xen/interface/event_channel.h>
#include <xen/page.h>
#include <asm/xen/hypercall.h>

#include "virtio_msg_xen.h"

static int xvm_bus_try_send(struct xvm_bus *bus, const struct shim_request *request)
{
	unsigned long flags;
	int err = -EIO;

	spin_lock_irqsave(&bus->lock, flags);
	if (!bus->broken)
		err = shim_send(bus->transport, bus->page, request);
	spin_unlock_irqrestore(&bus->lock, flags);
	return err;
}

static int xvm_bus_try_take(struct xvm_bus *bus, struct shim_answer *answer, void *data,
			    u32 capacity)
{
	unsigned long flags;
	int err = -EIO;

	spin_lock_irqsave(&bus->lock, flags);
	if (!bus->broken)
		err = shim_take_answer(bus->transport, answer, data, capacity);
	spin_unlock_irqrestore(&bus->lock, flags);
	return err;
}

/* A request and its answer, under the mutex exchange. */
struct xvm_exchange {
	const struct shim_request *request;
	bool sent;
	struct shim_answer *answer;
	void *data;
	u32 capacity;
};

/* Sends the request, then takes the answer. Returns -EAGAIN if it has to wait. */
static int xvm_bus_try(struct xvm_bus *bus, struct xvm_exchange *exchange)
{
	int err;

	if (!exchange->sent) {
		err = xvm_bus_try_send(bus, exchange->request);
		if (err)
			return err;
		exchange->sent = true;
		notify_remote_via_irq(bus->irq);
	}
	return xvm_bus_try_take(bus, exchange->answer, exchange->data,
				exchange->capacity);
}

/* Whether the virtio driver works: it is not being bound, reset, unbound or removed. */
static bool xvm_bus_is_running(const struct xvm_device *xvm)
{
	return READ_ONCE(xvm->bus.running) && !READ_ONCE(xvm->removing);
}

/* A pause is no time in which the configuration changed at every reading [7.27]. */
static void xvm_bus_forget_generations(struct xvm_bus *bus)
{
	spin_lock_irq(&bus->lock);
	memset(&bus->generations, 0, sizeof(bus->generations));
	spin_unlock_irq(&bus->lock);
}

/*
 * Waits until xvm_bus_try() succeeds or fails. The state of the backend is the one
 * that the watch last read, because reading it may wait for XenStore. If the backend
 * leaves, xvm_fail() ends this. TASK_IDLE: a long wait is no hung task.
 */
static int xvm_bus_wait(struct xvm_device *xvm, struct xvm_exchange *exchange)
{
	struct xvm_bus *bus = &xvm->bus;
	u64 start = ktime_to_ms(ktime_get()), waited = 0, more;
	bool running, late = false;
	int err;

	do {
		running = xvm_bus_is_running(xvm);
		more = shim_response_wait(waited, running, READ_ONCE(xvm->backend));
		if (!more)
			return -ETIMEDOUT;
		if (late)
			dev_warn_ratelimited(&xvm->xdev->dev,
					     "waiting for the backend, which has not answered for %llu s\n",
					     div_u64(waited, MSEC_PER_SEC));
		late |= !wait_event_idle_timeout(bus->wait,
						 (err = xvm_bus_try(bus, exchange)) != -EAGAIN ||
						 xvm_bus_is_running(xvm) != running,
						 msecs_to_jiffies(more) + 1);
		waited = ktime_to_ms(ktime_get()) - start;
	} while (err == -EAGAIN);

	if (late && !err) {
		xvm_bus_forget_generations(bus);
		dev_info(&xvm->xdev->dev, "the backend answers again after %llu s\n",
			 div_u64(waited, MSEC_PER_SEC));
	}
	return err;
}

/**
 * xvm_bus_set_running() - allow or end long waits for the device
 * @xvm: device
 * @running: true if the driver was bound to the device; false before anything that
 *	waits for the driver's requests
 *
 * Context: Any context. Takes the bus lock.
 */
void xvm_bus_set_running(struct xvm_device *xvm, bool running)
{
	unsigned long flags;

	/* Not while a device begins to wait for another backend. */
	spin_lock_irqsave(&xvm->bus.lock, flags);
	WRITE_ONCE(xvm->bus.running, running);
	spin_unlock_irqrestore(&xvm->bus.lock, flags);
	wake_up_all(&xvm->bus.wait);
}

/**
 * xvm_bus_request() - send a request and wait for the answer
 * @xvm: device
 * @request: request
 * @answer: filled in
 * @data: buffer for bytes of configuration, or NULL
 * @capacity: size of @data in bytes
 *
 * An error other than -ERANGE is final: the device is given up, and every later
 * request fails at once.
 *
 * Return: 0, -ERANGE if the device has no such configuration and was not asked, or
 * another negative errno number.
 * Context: Process context. Waits for the device: for a limited time, or while the
 * device is running, for as long as its backend is connected [5.4].
 */
int xvm_bus_request(struct xvm_device *xvm, const struct shim_request *request,
		    struct shim_answer *answer, void *data, u32 capacity)
{
	struct xvm_exchange exchange = {
		.request = request,
		.answer = answer,
		.data = data,
		.capacity = capacity,
	};
	int err;

	mutex_lock(&xvm->bus.exchange);
	err = xvm_bus_try(&xvm->bus, &exchange);
	if (err == -EAGAIN)
		err = xvm_bus_wait(xvm, &exchange);
	mutex_unlock(&xvm->bus.exchange);

	if (err == -ETIMEDOUT)
		xvm_fail(xvm, "no answer to a request");
	else if (err == -EPROTO)
		xvm_fail(xvm, "an answer does not fit its request");
	else if (err && err != -EIO && err != -ERANGE)
		xvm_fail(xvm, "a request could not be sent");
	return err;
}

/**
 * xvm_bus_avail() - notify the device of buffers by a message
 * @xvm: device
 * @index: queue
 *
 * Return: true unless the device is broken.
 * Context: Any context.
 */
bool xvm_bus_avail(struct xvm_device *xvm, unsigned int index)
{
	struct xvm_bus *bus = &xvm->bus;
	unsigned long flags;
	int signal = -EIO;

	spin_lock_irqsave(&bus->lock, flags);
	if (!bus->broken)
		signal = shim_event_avail(bus->transport, bus->page, index);
	spin_unlock_irqrestore(&bus->lock, flags);
	if (signal > 0)
		notify_remote_via_irq(bus->irq);
	return signal >= 0;
}

/* Handles EVENT_CONFIG. Returns whether it differs from the last one. */
static bool xvm_bus_config_changed(struct xvm_device *xvm, u32 status)
{
	struct xvm_bus *bus = &xvm->bus;
	unsigned long flags;
	bool ready, news;

	/* The driver cannot be notified while the device is being registered. */
	spin_lock_irqsave(&bus->lock, flags);
	news = shim_config_is_news(&bus->announced, status,
				   shim_generation(bus->transport));
	ready = xvm->ready;
	bus->config_changed = !ready;
	spin_unlock_irqrestore(&bus->lock, flags);

	if (xvm_check_status(xvm, status) && ready)
		virtio_config_changed(&xvm->virtio->vdev);
	return news;
}

/* Handles one message. Returns an enum shim_message. */
static u32 xvm_bus_receive_one(struct xvm_device *xvm)
{
	struct xvm_bus *bus = &xvm->bus;
	struct shim_received received;
	unsigned long flags;

	spin_lock_irqsave(&bus->lock, flags);
	shim_receive(bus->transport, bus->page, &received);
	spin_unlock_irqrestore(&bus->lock, flags);

	switch (received.what) {
	case SHIM_DRAINED:
		if (received.signal)
			notify_remote_via_irq(bus->irq);
		return SHIM_NONE;
	case SHIM_ANSWERED:
		return SHIM_USEFUL;
	case SHIM_CONFIG_CHANGED:
		return xvm_bus_config_changed(xvm, received.status) ? SHIM_USEFUL : SHIM_USELESS;
	case SHIM_USED:
		return bus->used(xvm, received.index) ? SHIM_USEFUL : SHIM_USELESS;
	case SHIM_BROKEN:
		xvm_fail(xvm, "the message page is corrupt");
		return SHIM_NONE;
	default:
		return SHIM_USELESS;
	}
}

/*
 * Handles messages, up to a budget. The event channel stays masked until
 * xen_irq_lateeoi(), so that this function never runs twice at the same time.
 */
static void xvm_bus_drain(struct xvm_device *xvm)
{
	struct shim_interrupt interrupt = {};
	struct xvm_bus *bus = &xvm->bus;
	u32 next;

	do {
		next = shim_interrupt_count(&interrupt, xvm_bus_receive_one(xvm));
	} while (next == SHIM_RECEIVE);
	/* There may be an answer, or free slots in a page that was full. */
	wake_up(&bus->wait);

	if (next == SHIM_LATER)
		schedule_work(&bus->drain);
	else
		xen_irq_lateeoi(bus->irq, next == SHIM_DONE ?
					  0 : XEN_EOI_FLAG_SPURIOUS);
}

static void xvm_bus_drain_work(struct work_struct *work)
{
	xvm_bus_drain(container_of(work, struct xvm_device, bus.drain));
}

static irqreturn_t xvm_bus_interrupt(int irq, void *data)
{
	xvm_bus_drain(data);
	return IRQ_HANDLED;
}

/**
 * xvm_bus_init() - prepare a device for xvm_bus_open()
 * @xvm: device
 * @used: called for a message that the device used buffers, in interrupt or process
 *	context; returns whether it did
 */
void xvm_bus_init(struct xvm_device *xvm,
		  bool (*used)(struct xvm_device *xvm, unsigned int index))
{
	struct xvm_bus *bus = &xvm->bus;

	bus->used = used;
	bus->broken = true;	/* until xvm_bus_open() */
	mutex_init(&bus->exchange);
	spin_lock_init(&bus->lock);
	init_waitqueue_head(&bus->wait);
	INIT_WORK(&bus->drain, xvm_bus_drain_work);
}

/* After this, the device neither sends nor receives, and nobody waits for an answer. */
static void xvm_bus_free_transport(struct xvm_bus *bus)
{
	struct shim_transport *transport = bus->transport;
	unsigned long flags;

	spin_lock_irqsave(&bus->lock, flags);
	bus->broken = true;
	bus->transport = NULL;
	spin_unlock_irqrestore(&bus->lock, flags);
	wake_up_all(&bus->wait);
	mutex_lock(&bus->exchange);
	mutex_unlock(&bus->exchange);
	kfree(transport);
}

/**
 * xvm_bus_set_broken() - let requests fail, or not any more
 * @xvm: device, whose driver waits
 * @broken: true while there is no connection
 *
 * Unlike xvm_fail(), this is no failure of the device.
 *
 * Context: Any context. Takes the bus lock.
 */
void xvm_bus_set_broken(struct xvm_device *xvm, bool broken)
{
	struct xvm_bus *bus = &xvm->bus;
	unsigned long flags;

	spin_lock_irqsave(&bus->lock, flags);
	bus->broken = broken || !bus->transport;
	spin_unlock_irqrestore(&bus->lock, flags);
	wake_up_all(&bus->wait);
}

static int xvm_bus_open_page(struct xvm_device *xvm)
{
	struct xvm_bus *bus = &xvm->bus;
	int ref;

	bus->page = (void *)get_zeroed_page(GFP_KERNEL);
	if (!bus->page) {
		xenbus_dev_fatal(xvm->xdev, -ENOMEM, "no message page");
		return -ENOMEM;
	}
	ref = gnttab_grant_foreign_access(xvm->xdev->otherend_id,
					  virt_to_gfn(bus->page), 0);
	if (ref < 0) {
		xenbus_dev_fatal(xvm->xdev, ref,
				 "no grant reference is free for the message page");
		free_page((unsigned long)bus->page);
		bus->page = NULL;
		return ref;
	}
	bus->gref = ref;
	return 0;
}

/* The kernel frees a page that the backend has mapped when it unmaps the page [3.6]. */
static void xvm_bus_close_page(struct xvm_device *xvm)
{
	struct xvm_bus *bus = &xvm->bus;

	if (gnttab_try_end_foreign_access(bus->gref)) {
		free_page((unsigned long)bus->page);
	} else {
		dev_alert(&xvm->xdev->dev,
			  "backend still uses the message page; it is withheld\n");
		gnttab_end_foreign_access(bus->gref, virt_to_page(bus->page));
	}
	bus->page = NULL;
}

/**
 * xvm_bus_alloc_evtchn() - allocate an event channel
 * @xvm: device
 * @port: filled in
 *
 * Unlike xenbus_alloc_evtchn(), does not close the device on failure: a queue can do
 * without an event channel.
 *
 * Return: 0 or a negative errno number.
 * Context: Any context.
 */
int xvm_bus_alloc_evtchn(struct xvm_device *xvm, evtchn_port_t *port)
{
	struct evtchn_alloc_unbound alloc = {
		.dom = DOMID_SELF,
		.remote_dom = xvm->xdev->otherend_id,
	};
	int err = HYPERVISOR_event_channel_op(EVTCHNOP_alloc_unbound, &alloc);

	if (!err)
		*port = alloc.port;
	return err;
}

/**
 * xvm_bus_reserve() - reserve the event channel for messages
 * @xvm: device
 *
 * A device needs an event channel for messages. It is reserved when the device is
 * probed, before any device allocates one for a queue, which can do without. If none
 * is free, xvm_bus_open() tries again.
 *
 * Context: Any context.
 */
void xvm_bus_reserve(struct xvm_device *xvm)
{
	if (xvm_bus_alloc_evtchn(xvm, &xvm->bus.reserved))
		xvm->bus.reserved = 0;
}

/**
 * xvm_bus_unreserve() - free the event channel that was reserved, if any
 * @xvm: device
 *
 * Context: Process context. Sleeps.
 */
void xvm_bus_unreserve(struct xvm_device *xvm)
{
	if (xvm->bus.reserved)
		xenbus_free_evtchn(xvm->xdev, xvm->bus.reserved);
	xvm->bus.reserved = 0;
}

static int xvm_bus_take_port(struct xvm_device *xvm)
{
	struct xvm_bus *bus = &xvm->bus;

	if (!bus->reserved)
		return xvm_bus_alloc_evtchn(xvm, &bus->port);
	bus->port = bus->reserved;
	bus->reserved = 0;
	return 0;
}

static int xvm_bus_open_channel(struct xvm_device *xvm)
{
	struct xvm_bus *bus = &xvm->bus;
	int ret;

	ret = xvm_bus_take_port(xvm);
	if (ret) {
		if (ret == -EPERM)
			xenbus_dev_fatal(xvm->xdev, ret,
					 "Xen's security policy forbids event channels to domain %d (XSM SILO, the default on Arm: boot Xen with xsm=dummy)",
					 xvm->xdev->otherend_id);
		else
			xenbus_dev_fatal(xvm->xdev, ret,
					 "no event channel is free for messages");
		return ret;
	}
	ret = bind_evtchn_to_irqhandler_lateeoi(bus->port, xvm_bus_interrupt, 0,
						dev_name(&xvm->xdev->dev), xvm);
	if (ret < 0) {
		xenbus_dev_fatal(xvm->xdev, ret, "no interrupt for messages");
		xenbus_free_evtchn(xvm->xdev, bus->port);
		return ret;
	}
	bus->irq = ret;
	return 0;
}

/**
 * xvm_bus_open() - make the message page and the event channel [2.4]
 * @xvm: device
 * @negotiated: result of shim_negotiate()
 *
 * Reports an error to xenbus.
 *
 * Return: 0 or a negative errno number.
 * Context: Process context. Sleeps.
 */
int xvm_bus_open(struct xvm_device *xvm,
		 const struct shim_negotiated *negotiated)
{
	struct xvm_bus *bus = &xvm->bus;
	int err;

	bus->transport = kzalloc(shim_transport_size(), GFP_KERNEL);
	if (!bus->transport) {
		xenbus_dev_fatal(xvm->xdev, -ENOMEM, "no transport");
		return -ENOMEM;
	}
	shim_transport_init(bus->transport, negotiated);
	memset(&bus->announced, 0, sizeof(bus->announced));
	memset(&bus->generations, 0, sizeof(bus->generations));
	bus->shared_pool = negotiated->shared_pool;
	bus->unshare = negotiated->unshare;
	bus->movable = negotiated->movable;
	bus->max_config = shim_max_config_bytes(bus->transport);
	bus->config_changed = false;
	bus->driver_ok = false;
	bus->running = false;
	/* Nobody uses a device whose driver waits before it is connected. */
	bus->broken = xvm->frozen || xvm->kept;
	err = xvm_bus_open_page(xvm);
	if (err)
		goto free_transport;
	err = xvm_bus_open_channel(xvm);
	if (err)
		goto close_page;
	return 0;

close_page:
	xvm_bus_close_page(xvm);
free_transport:
	xvm_bus_free_transport(bus);
	return err;
}

/**
 * xvm_bus_quiesce() - wait until no message of the device is being handled
 * @xvm: device
 *
 * Context: Process context. Sleeps.
 */
void xvm_bus_quiesce(struct xvm_device *xvm)
{
	if (!xvm->bus.irq)
		return;
	synchronize_irq(xvm->bus.irq);
	flush_work(&xvm->bus.drain);
}

/**
 * xvm_bus_close() - free the message page and the event channel
 * @xvm: device, open or not
 *
 * Context: Process context. Sleeps.
 */
void xvm_bus_close(struct xvm_device *xvm)
{
	struct xvm_bus *bus = &xvm->bus;

	if (!bus->irq)
		return;
	/* First the interrupt, which queues the work. */
	disable_irq(bus->irq);
	cancel_work_sync(&bus->drain);
	unbind_from_irqhandler(bus->irq, xvm);
	bus->irq = 0;
	xvm_bus_free_transport(bus);
	xvm_bus_close_page(xvm);
}

/**
 * xvm_bus_dropped() - count the messages that were dropped [5.3, 5.4]
 * @xvm: device
 *
 * Return: Number of messages since the connection began.
 * Context: Process context. Takes the bus lock.
 */
u64 xvm_bus_dropped(struct xvm_device *xvm)
{
	struct shim_counters counters = {};

	spin_lock_irq(&xvm->bus.lock);
	if (xvm->bus.transport)
		shim_counters(xvm->bus.transport, &counters);
	spin_unlock_irq(&xvm->bus.lock);
	return counters.malformed + counters.unexpected;
}
