// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * Virtqueues: creates their rings, and a doorbell for each [5.6].
 */
#include <linux/interrupt.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "virtio_msg_xen.h"

/* Entries of a queue that no device has. */
#define DEAD_QUEUE_SIZE 64

static bool xvm_doorbells = true;
module_param_named(doorbells, xvm_doorbells, bool, 0444);
MODULE_PARM_DESC(doorbells, "An event channel for each queue; without, events go through the message page");

static bool xvm_queue_notify(struct virtqueue *vq)
{
	struct xvm_device *xvm = vdev_to_xvm(vq->vdev);
	struct xvm_queue *queue = vq->priv;

	xvm_pressure_notified(xvm, queue);
	/* The next device looks at all queues. */
	if (READ_ONCE(xvm->kept))
		return true;
	if (!queue->irq)
		return xvm_bus_avail(xvm, queue->index) || READ_ONCE(xvm->kept);
	notify_remote_via_irq(queue->irq);
	return true;
}

/*
 * Whether the device used buffers since the last event. A network driver may have
 * taken them before the event, which is then not spurious: if it were counted as
 * such, the kernel would delay the next one by up to a second. All events of a device
 * that was given up are spurious.
 */
static bool xvm_queue_device_worked(struct virtqueue *vq)
{
	struct xvm_queue *queue = vq->priv;
	u16 used = virtio16_to_cpu(vq->vdev,
				   READ_ONCE(virtqueue_get_vring(vq)->used->idx));
	bool worked = used != queue->used && !virtqueue_is_broken(vq);

	queue->used = used;
	return worked;
}

/* Notifies the driver. Returns whether the device used buffers. */
static bool xvm_queue_notify_driver(int irq, struct virtqueue *vq)
{
	bool worked = xvm_queue_device_worked(vq);

	vring_interrupt(irq, vq);
	return worked;
}

static irqreturn_t xvm_queue_interrupt(int irq, void *data)
{
	bool worked = xvm_queue_notify_driver(irq, data);

	xen_irq_lateeoi(irq, worked ? 0 : XEN_EOI_FLAG_SPURIOUS);
	/* Never IRQ_NONE: lateeoi already slows down a backend with spurious events. */
	return IRQ_HANDLED;
}

/**
 * xvm_queue_used() - handle a message that the device used buffers
 * @xvm: device
 * @index: number of the queue in the message, not yet checked
 *
 * Return: true if there is such a queue and the device used buffers of it.
 * Context: Interrupt or process context.
 */
bool xvm_queue_used(struct xvm_device *xvm, unsigned int index)
{
	struct virtqueue *vq = NULL;
	unsigned long flags;
	unsigned int i;

	spin_lock_irqsave(&xvm->bus.lock, flags);
	for (i = 0; i < xvm->nr_queues; i++)
		if (xvm->queues[i].vq && !xvm->queues[i].vq->reset &&
		    xvm->queues[i].index == index)
			vq = xvm->queues[i].vq;
	spin_unlock_irqrestore(&xvm->bus.lock, flags);

	/* xvm_del_vqs() and xvm_disable_vq() wait for this before they free the queue. */
	return vq && xvm_queue_notify_driver(0, vq);
}

/* Enables the queue in the device, and checks that it is enabled. */
static int xvm_queue_enable(struct xvm_device *xvm, struct virtqueue *vq)
{
	struct shim_request set = {
		.kind = SHIM_SET_VQUEUE,
		.index = vq->index,
		.size = virtqueue_get_vring_size(vq),
		.descriptor = virtqueue_get_desc_addr(vq),
		.driver = virtqueue_get_avail_addr(vq),
		.device = virtqueue_get_used_addr(vq),
	};
	struct shim_request get = { .kind = SHIM_GET_VQUEUE, .index = vq->index };
	struct shim_answer answer;
	int err;

	err = xvm_dma_grant_ring(xvm, vq);
	if (err)
		return err;
	err = xvm_bus_request(xvm, &set, &answer, NULL, 0);
	if (!err)
		err = xvm_bus_request(xvm, &get, &answer, NULL, 0);
	if (err)
		return err;
	if (!answer.queue_enabled || answer.queue_size != set.size) {
		dev_err(&xvm->xdev->dev, "device refused queue %u with %u entries\n",
			vq->index, set.size);
		return -EINVAL;
	}
	return 0;
}

/* Binds an event channel of the queue. Returns its interrupt or a negative errno. */
static int xvm_queue_open_doorbell(struct xvm_device *xvm, struct virtqueue *vq,
				   evtchn_port_t *port)
{
	int irq, err;

	err = xvm_bus_alloc_evtchn(xvm, port);
	if (err)
		return err;
	irq = bind_evtchn_to_irqhandler_lateeoi(*port, xvm_queue_interrupt, 0,
						vq->name, vq);
	if (irq < 0)
		xenbus_free_evtchn(xvm->xdev, *port);
	return irq;
}

static int xvm_queue_bind_doorbell(struct xvm_device *xvm, struct xvm_queue *queue)
{
	struct shim_request bind = {
		.kind = SHIM_BIND_QUEUE,
		.index = queue->index,
	};
	struct shim_answer answer = {};
	int irq, err;

	irq = xvm_queue_open_doorbell(xvm, queue->vq, &bind.port);
	if (irq < 0)
		return irq;
	err = xvm_bus_request(xvm, &bind, &answer, NULL, 0);
	if (answer.bound) {
		queue->irq = irq;
		return 0;
	}
	unbind_from_irqhandler(irq, queue->vq);
	return err ?: -ENXIO;
}

/* Opens the doorbell. Without one, the queue's events are messages. */
static int xvm_queue_prepare_events(struct xvm_device *xvm, struct xvm_queue *queue)
{
	int err;

	if (!xvm_doorbells)
		return 0;
	xvm_probe_order_wait_all_found();
	err = xvm_queue_bind_doorbell(xvm, queue);
	if (!err || READ_ONCE(xvm->bus.broken))
		return err;
	dev_warn(&xvm->xdev->dev,
		 "no event channel for queue %u (%d): its events go through the message page, slower\n",
		 queue->index, err);
	return 0;
}

/*
 * When this function returns, no callback of the queue is running. The caller has
 * hidden the queue from xvm_queue_used().
 */
static void xvm_queue_stop_events(struct xvm_device *xvm, struct xvm_queue *queue,
				  struct virtqueue *vq)
{
	/* The driver may reset the queue while the connection is undone. */
	unsigned int irq = xchg(&queue->irq, 0);

	if (irq)
		unbind_from_irqhandler(irq, vq);
	xvm_bus_quiesce(xvm);
}

/* Enables a queue whose ring is there. */
static int xvm_queue_start(struct xvm_device *xvm, struct xvm_queue *queue)
{
	/* The doorbell first: an enabled queue cannot get one [5.6]. */
	int err = xvm_queue_prepare_events(xvm, queue);

	return err ?: xvm_queue_enable(xvm, queue->vq);
}

/**
 * xvm_disconnect_vqs() - end the events of all queues
 * @xvm: device that loses its connection, and keeps its queues
 *
 * The drivers take back what the device has given back.
 *
 * Context: Process context. Sleeps.
 */
void xvm_disconnect_vqs(struct xvm_device *xvm)
{
	unsigned int i;

	for (i = 0; i < xvm->nr_queues; i++) {
		struct xvm_queue *queue = &xvm->queues[i];

		if (!queue->vq || queue->vq->reset)
			continue;
		xvm_queue_stop_events(xvm, queue, queue->vq);
		/* A network driver goes on in a softirq. */
		local_bh_disable();
		vring_interrupt(0, queue->vq);
		local_bh_enable();
	}
}

/**
 * xvm_connect_vqs() - enable the queues of a device that has them already
 * @xvm: device that is being set up
 *
 * Return: 0 or a negative errno number.
 * Context: Process context. Waits for the device.
 */
int xvm_connect_vqs(struct xvm_device *xvm)
{
	unsigned int i;
	int err = 0;

	for (i = 0; i < xvm->nr_queues && !err; i++) {
		struct xvm_queue *queue = &xvm->queues[i];

		if (queue->vq && !queue->vq->reset)
			err = xvm_queue_start(xvm, queue);
	}
	return err;
}

/**
 * xvm_notify_vqs() - have the device look at all queues
 * @xvm: device
 *
 * Context: Process context.
 */
void xvm_notify_vqs(struct xvm_device *xvm)
{
	unsigned int i;

	for (i = 0; i < xvm->nr_queues; i++)
		if (xvm->queues[i].vq && !xvm->queues[i].vq->reset)
			xvm_queue_notify(xvm->queues[i].vq);
}

/**
 * xvm_disable_vq() - reset a queue: virtio operation disable_vq_and_reset [6.7]
 * @vq: queue
 *
 * The driver does this while other queues run, to change the ring or to take its
 * buffers out.
 *
 * Return: 0 or a negative errno number.
 * Context: Process context. Waits for the device.
 */
int xvm_disable_vq(struct virtqueue *vq)
{
	struct xvm_device *xvm = vdev_to_xvm(vq->vdev);
	struct xvm_queue *queue = vq->priv;
	struct shim_request reset = {
		.kind = SHIM_RESET_VQUEUE,
		.index = queue->index,
	};
	struct shim_request get = {
		.kind = SHIM_GET_VQUEUE,
		.index = queue->index,
	};
	struct shim_answer answer;
	int err;

	if (!virtio_has_feature(vq->vdev, VIRTIO_F_RING_RESET))
		return -ENOENT;
	err = xvm_bus_request(xvm, &reset, &answer, NULL, 0);
	if (!err)
		err = xvm_bus_request(xvm, &get, &answer, NULL, 0);
	if (err)
		return err;
	if (answer.queue_enabled)
		return -EBUSY;

	spin_lock_irq(&xvm->bus.lock);
	vq->reset = true;
	spin_unlock_irq(&xvm->bus.lock);
	xvm_queue_stop_events(xvm, queue, vq);
	return 0;
}

static void xvm_queue_end_reset(struct xvm_device *xvm, struct virtqueue *vq)
{
	spin_lock_irq(&xvm->bus.lock);
	vq->reset = false;
	spin_unlock_irq(&xvm->bus.lock);
}

/* While the driver waits for another backend, leaves the queue to xvm_connect_vqs(). */
static bool xvm_queue_enable_later(struct xvm_device *xvm, struct virtqueue *vq)
{
	bool later;

	mutex_lock(&xvm->beginning);
	later = xvm->kept;
	if (later)
		xvm_queue_end_reset(xvm, vq);
	mutex_unlock(&xvm->beginning);
	return later;
}

/**
 * xvm_enable_vq() - enable a queue again: virtio operation enable_vq_after_reset
 * @vq: queue that was reset by xvm_disable_vq()
 *
 * Return: 0 or a negative errno number.
 * Context: Process context. Waits for the device.
 */
int xvm_enable_vq(struct virtqueue *vq)
{
	struct xvm_device *xvm = vdev_to_xvm(vq->vdev);
	struct xvm_queue *queue = vq->priv;
	int err;

	if (!vq->reset)
		return -EBUSY;
	queue->used = 0;
	xvm_unfinished_open(xvm, queue);
	err = xvm_queue_start(xvm, queue);
	if (err && xvm_queue_enable_later(xvm, vq))
		return 0;
	/* Another backend may have come meanwhile. */
	if (err && !READ_ONCE(xvm->bus.broken))
		err = xvm_queue_start(xvm, queue);
	if (!err)
		xvm_queue_end_reset(xvm, vq);
	return err;
}

static void xvm_queue_close(struct xvm_device *xvm, struct xvm_queue *queue)
{
	struct virtqueue *vq = queue->vq;

	if (!vq)
		return;
	spin_lock_irq(&xvm->bus.lock);
	queue->vq = NULL;
	spin_unlock_irq(&xvm->bus.lock);

	xvm_queue_stop_events(xvm, queue, vq);
	xvm_unfinished_close(xvm, queue);
	vring_del_virtqueue(vq);
}

/* The most entries that the device allows. Returns them or a negative errno. */
static int xvm_queue_max_size(struct xvm_device *xvm, const struct xvm_queue *queue)
{
	struct shim_request get = {
		.kind = SHIM_GET_VQUEUE,
		.index = queue->index,
	};
	struct shim_answer answer;
	int err;

	if (xvm->dead)
		return DEAD_QUEUE_SIZE;
	err = xvm_bus_request(xvm, &get, &answer, NULL, 0);
	if (err)
		return err;
	return answer.queue_max_size ?: -ENOENT;
}

static int xvm_queue_open(struct xvm_device *xvm, struct xvm_queue *queue,
			  const struct virtqueue_info *info)
{
	int size = xvm_queue_max_size(xvm, queue);
	struct virtqueue *vq;
	int err;

	if (size < 0)
		return size;

	/*
	 * Aligned to pages: the area that the device writes shares no page with
	 * the areas that it only reads.
	 */
	vq = vring_create_virtqueue(queue->index, size,
				    XEN_PAGE_SIZE, &xvm->virtio->vdev, true, true,
				    info->ctx, xvm_queue_notify, info->callback,
				    info->name);
	if (!vq)
		return -ENOMEM;
	vq->num_max = size;
	vq->priv = queue;
	spin_lock_irq(&xvm->bus.lock);
	queue->vq = vq;
	spin_unlock_irq(&xvm->bus.lock);
	xvm_unfinished_open(xvm, queue);

	if (xvm->dead) {
		__virtqueue_break(vq);
		return 0;
	}
	err = xvm_queue_enable(xvm, vq);
	return err ?: xvm_queue_prepare_events(xvm, queue);
}

/**
 * xvm_del_vqs() - delete all queues: virtio operation del_vqs
 * @vdev: virtio device
 *
 * Context: Process context. Sleeps.
 */
void xvm_del_vqs(struct virtio_device *vdev)
{
	struct xvm_device *xvm = vdev_to_xvm(vdev);
	struct xvm_queue *queues = xvm->queues;
	unsigned int i;

	for (i = 0; i < xvm->nr_queues; i++)
		xvm_queue_close(xvm, &queues[i]);

	spin_lock_irq(&xvm->bus.lock);
	xvm->queues = NULL;
	xvm->nr_queues = 0;
	spin_unlock_irq(&xvm->bus.lock);
	kfree(queues);
	xvm_pressure_close(xvm);
}

/**
 * xvm_find_vqs() - create queues: virtio operation find_vqs
 * @vdev: virtio device
 * @nvqs: number of queues
 * @vqs: filled in
 * @info: name and callback of each queue
 * @affinity: unused
 *
 * Return: 0 or a negative errno number.
 * Context: Process context. Waits for the device.
 */
int xvm_find_vqs(struct virtio_device *vdev, unsigned int nvqs,
		 struct virtqueue *vqs[], struct virtqueue_info info[],
		 struct irq_affinity *affinity)
{
	struct xvm_device *xvm = vdev_to_xvm(vdev);
	struct xvm_queue *queues;
	unsigned int i, index = 0;
	int err;

	err = xvm_pressure_open(xvm);
	if (err)
		return err;
	queues = kcalloc(nvqs, sizeof(*queues), GFP_KERNEL);
	if (!queues) {
		xvm_pressure_close(xvm);
		return -ENOMEM;
	}
	spin_lock_irq(&xvm->bus.lock);
	xvm->queues = queues;
	xvm->nr_queues = nvqs;
	spin_unlock_irq(&xvm->bus.lock);
	xvm_pool_start(xvm);

	for (i = 0; i < nvqs; i++) {
		vqs[i] = NULL;
		/* The driver does not use a queue without a name. */
		if (!info[i].name)
			continue;
		queues[i].index = index++;
		err = xvm_queue_open(xvm, &queues[i], &info[i]);
		if (err)
			goto del_vqs;
		vqs[i] = queues[i].vq;
	}
	return 0;

del_vqs:
	/* The device must release the rings before they are freed [6.4]. */
	vdev->config->reset(vdev);
	xvm_del_vqs(vdev);
	return err;
}

/**
 * xvm_synchronize_cbs() - wait until no callback of a queue is running: virtio
 *	operation synchronize_cbs
 * @vdev: virtio device
 *
 * Context: Process context. Sleeps.
 */
void xvm_synchronize_cbs(struct virtio_device *vdev)
{
	struct xvm_device *xvm = vdev_to_xvm(vdev);
	unsigned int i;

	for (i = 0; i < xvm->nr_queues; i++)
		if (xvm->queues[i].irq)
			synchronize_irq(xvm->queues[i].irq);
	xvm_bus_quiesce(xvm);
}
