// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * Watches on the backends' states: one for all devices whose backends stand in
 * the same directory. XenStore gives a guest 128 watches, and xenbus takes one
 * for each device already: with another of its own, the 60th disk would fail.
 *
 * xenbus' own watches do not tell drivers of a guest that shuts down, nor of a
 * device that is being removed. They do tell of a device's first state, which
 * these do for the first device of a directory alone.
 */
#include <linux/slab.h>
#include <linux/string.h>

#include "virtio_msg_xen.h"

struct xvm_watch {
	struct xenbus_watch watch;
	struct list_head list;		/* among all watches */
	struct list_head devices;
};

static LIST_HEAD(watches);
/* Held while devices are told, so that none of them goes meanwhile. */
static DEFINE_MUTEX(watches_lock);

/* Whether a change at path may be one of the state of that backend. */
static bool concerns(const char *path, const char *backend)
{
	size_t length = strlen(backend);

	if (strncmp(path, backend, length) == 0)
		return !path[length] || strcmp(path + length, "/state") == 0;
	/* Something above it: it may be gone. */
	length = strlen(path);
	return strncmp(backend, path, length) == 0 && backend[length] == '/';
}

static void changed(struct xenbus_watch *watch, const char *path,
		    const char *token)
{
	struct xvm_watch *shared = container_of(watch, struct xvm_watch, watch);
	struct xvm_device *xvm;

	mutex_lock(&watches_lock);
	list_for_each_entry(xvm, &shared->devices, watched)
		if (concerns(path, xvm->xdev->otherend))
			xvm_backend_changed(xvm);
	mutex_unlock(&watches_lock);
}

static struct xvm_watch *find(const char *directory)
{
	struct xvm_watch *shared;

	list_for_each_entry(shared, &watches, list)
		if (strcmp(shared->watch.node, directory) == 0)
			return shared;
	return NULL;
}

/* Takes over directory, in any case. */
static struct xvm_watch *new(char *directory)
{
	struct xvm_watch *shared;
	int err = -ENOMEM;

	shared = kzalloc(sizeof(*shared), GFP_KERNEL);
	if (!shared)
		goto free;
	INIT_LIST_HEAD(&shared->devices);
	shared->watch.node = directory;
	shared->watch.callback = changed;
	err = register_xenbus_watch(&shared->watch);
	if (err)
		goto free;
	list_add(&shared->list, &watches);
	return shared;

free:
	kfree(shared);
	kfree(directory);
	return ERR_PTR(err);
}

int xvm_watch_enter(struct xvm_device *xvm)
{
	const char *backend = xvm->xdev->otherend;
	const char *number = strrchr(backend, '/');
	struct xvm_watch *shared;
	char *directory;

	if (!number)
		return -EINVAL;
	directory = kstrndup(backend, number - backend, GFP_KERNEL);
	if (!directory)
		return -ENOMEM;

	mutex_lock(&watches_lock);
	shared = find(directory);
	if (shared)
		kfree(directory);
	else
		shared = new(directory);
	if (!IS_ERR(shared)) {
		list_add(&xvm->watched, &shared->devices);
		xvm->watch = shared;
	}
	mutex_unlock(&watches_lock);
	return PTR_ERR_OR_ZERO(shared);
}

/* When this returns, the device is not being told of anything. */
void xvm_watch_leave(struct xvm_device *xvm)
{
	struct xvm_watch *shared = xvm->watch;
	bool last;

	mutex_lock(&watches_lock);
	list_del(&xvm->watched);
	last = list_empty(&shared->devices);
	if (last)
		list_del(&shared->list);
	mutex_unlock(&watches_lock);
	if (!last)
		return;
	/* Without the lock: this waits for a callback that waits for it. */
	unregister_xenbus_watch(&shared->watch);
	kfree(shared->watch.node);
	kfree(shared);
}
