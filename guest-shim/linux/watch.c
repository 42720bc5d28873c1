// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * Watches on the backends' states: one for all devices whose backends are in the
 * same directory. XenStore allows a guest 128 watches, and xenbus already uses one
 * for each device: with another one for each device, the 60th disk would fail.
 *
 * The watches of xenbus do not notify drivers while the guest shuts down or the
 * device is being removed. They do notify of a device's first state, which the
 * watches here do only for the first device of a directory.
 */
#include <linux/slab.h>
#include <linux/string.h>

#include "virtio_msg_xen.h"

struct xvm_watch {
	struct xenbus_watch watch;
	struct list_head list;		/* among all watches */
	struct list_head devices;
};

static LIST_HEAD(xvm_watches);
/* Held while devices are notified, so that no device is freed meanwhile. */
static DEFINE_MUTEX(xvm_watches_lock);

/* Whether a change at path may have changed what concerns the device. */
static bool xvm_watch_concerns(const char *path, const char *backend)
{
	size_t length = strlen(backend);

	if (strncmp(path, backend, length) == 0)
		return !path[length] || strcmp(path + length, "/state") == 0 ||
		       (path[length] == '/' && xvm_detach_concerns(path + length + 1));
	/* A directory above the backend changed: the backend may be gone. */
	length = strlen(path);
	return strncmp(backend, path, length) == 0 && backend[length] == '/';
}

static void xvm_watch_fired(struct xenbus_watch *watch, const char *path,
			    const char *token)
{
	struct xvm_watch *shared = container_of(watch, struct xvm_watch, watch);
	struct xvm_device *xvm;

	mutex_lock(&xvm_watches_lock);
	list_for_each_entry(xvm, &shared->devices, watched)
		if (xvm_watch_concerns(path, xvm->backend_path))
			xvm->watch_changed(xvm);
	mutex_unlock(&xvm_watches_lock);
}

static struct xvm_watch *xvm_watch_find(const char *directory)
{
	struct xvm_watch *shared;

	list_for_each_entry(shared, &xvm_watches, list)
		if (strcmp(shared->watch.node, directory) == 0)
			return shared;
	return NULL;
}

/* Takes ownership of directory, even on failure. */
static struct xvm_watch *xvm_watch_new(char *directory)
{
	struct xvm_watch *shared;
	int err = -ENOMEM;

	shared = kzalloc(sizeof(*shared), GFP_KERNEL);
	if (!shared)
		goto free;
	INIT_LIST_HEAD(&shared->devices);
	shared->watch.node = directory;
	shared->watch.callback = xvm_watch_fired;
	err = register_xenbus_watch(&shared->watch);
	if (err)
		goto free;
	list_add(&shared->list, &xvm_watches);
	return shared;

free:
	kfree(shared);
	kfree(directory);
	return ERR_PTR(err);
}

/* The directory that contains a backend. The caller frees it. */
static char *xvm_watch_directory(const char *backend)
{
	const char *number = strrchr(backend, '/');
	char *directory;

	if (!number)
		return ERR_PTR(-EINVAL);
	directory = kstrndup(backend, number - backend, GFP_KERNEL);
	return directory ?: ERR_PTR(-ENOMEM);
}

/* Under xvm_watches_lock. Takes ownership of directory, even on failure. */
static int xvm_watch_join(struct xvm_device *xvm, char *directory)
{
	struct xvm_watch *shared = xvm_watch_find(directory);

	if (shared)
		kfree(directory);
	else
		shared = xvm_watch_new(directory);
	if (IS_ERR(shared))
		return PTR_ERR(shared);
	list_add(&xvm->watched, &shared->devices);
	xvm->watch = shared;
	return 0;
}

/**
 * xvm_watch_init() - prepare a device for xvm_watch_enter()
 * @xvm: device
 * @changed: called in a xenbus watch when the backend's state may have changed
 */
void xvm_watch_init(struct xvm_device *xvm,
		    void (*changed)(struct xvm_device *xvm))
{
	xvm->watch_changed = changed;
}

/**
 * xvm_watch_enter() - watch the state of a device's backend
 * @xvm: device
 *
 * Copies the backend's path, because xenbus frees its own copy while the guest is
 * restored.
 *
 * Return: 0 or a negative errno number.
 * Context: Process context. Sleeps.
 */
int xvm_watch_enter(struct xvm_device *xvm)
{
	char *directory = xvm_watch_directory(xvm->xdev->otherend);
	int err;

	if (IS_ERR(directory))
		return PTR_ERR(directory);
	xvm->backend_path = kstrdup(xvm->xdev->otherend, GFP_KERNEL);
	if (!xvm->backend_path) {
		kfree(directory);
		return -ENOMEM;
	}
	mutex_lock(&xvm_watches_lock);
	err = xvm_watch_join(xvm, directory);
	mutex_unlock(&xvm_watches_lock);
	if (!err)
		return 0;
	kfree(xvm->backend_path);
	xvm->backend_path = NULL;
	return err;
}

/**
 * xvm_watch_leave() - stop watching the state of a device's backend
 * @xvm: device, watched or not
 *
 * When this function returns, the device's callback is not running.
 *
 * Context: Process context, but not in the device's callback. Sleeps.
 */
void xvm_watch_leave(struct xvm_device *xvm)
{
	struct xvm_watch *shared = xvm->watch;
	bool last;

	if (!shared)
		return;
	mutex_lock(&xvm_watches_lock);
	list_del(&xvm->watched);
	last = list_empty(&shared->devices);
	if (last)
		list_del(&shared->list);
	mutex_unlock(&xvm_watches_lock);
	xvm->watch = NULL;
	kfree(xvm->backend_path);
	xvm->backend_path = NULL;
	if (!last)
		return;
	/* Without the lock: a callback that this waits for may wait for the lock. */
	unregister_xenbus_watch(&shared->watch);
	kfree(shared->watch.node);
	kfree(shared);
}

/*
 * A watch on a path that does not exist: it fires once, when it is registered. It
 * starts a device that became ready to start while no watch ran.
 */
static void xvm_watch_reminded(struct xenbus_watch *watch, const char *path,
			       const char *token)
{
	struct xvm_watch *shared;
	struct xvm_device *xvm;

	mutex_lock(&xvm_watches_lock);
	list_for_each_entry(shared, &xvm_watches, list)
		list_for_each_entry(xvm, &shared->devices, watched)
			if (xvm->xdev->state == XenbusStateInitialising)
				xvm->watch_changed(xvm);
	mutex_unlock(&xvm_watches_lock);
}

static struct xenbus_watch xvm_reminder = {
	.node = "device/virtio_msg_xen",
	.callback = xvm_watch_reminded,
};

static bool xvm_reminder_registered;
static DEFINE_MUTEX(xvm_reminder_lock);

static void xvm_watch_unregister_reminder(void)
{
	if (xvm_reminder_registered)
		unregister_xenbus_watch(&xvm_reminder);
	xvm_reminder_registered = false;
}

/**
 * xvm_watch_remind() - call the callbacks of devices that may start
 *
 * The calls happen soon, in a xenbus watch.
 *
 * Return: 0 or a negative errno number.
 * Context: Process context. Sleeps.
 */
int xvm_watch_remind(void)
{
	int err;

	mutex_lock(&xvm_reminder_lock);
	xvm_watch_unregister_reminder();
	err = register_xenbus_watch(&xvm_reminder);
	xvm_reminder_registered = !err;
	mutex_unlock(&xvm_reminder_lock);
	return err;
}

/**
 * xvm_watch_exit() - free what xvm_watch_remind() registered
 *
 * Context: Process context, when no device is left.
 */
void xvm_watch_exit(void)
{
	mutex_lock(&xvm_reminder_lock);
	xvm_watch_unregister_reminder();
	mutex_unlock(&xvm_reminder_lock);
}
