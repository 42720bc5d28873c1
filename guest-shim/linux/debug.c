// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * Misbehaviour of a driver, for tests: that a device refuses it, and what happens
 * if a device does not. Only the build for tests (make test-module) has this file.
 * Even there, the parameter debug= must ask for a misbehaviour by name.
 */
#include <linux/module.h>
#include <linux/string.h>

#include "virtio_msg_xen.h"

static char *xvm_debug_name = "none";
module_param_named(debug, xvm_debug_name, charp, 0444);
MODULE_PARM_DESC(debug, "For tests, none or what a device is to refuse: raw-addresses (buffers at guest-physical addresses), no-access-platform (the feature is not accepted), bypass (the feature is not accepted, and rings and buffers are at guest-physical addresses)");

static const char * const xvm_debug_modes[] = {
	[XVM_DEBUG_NONE] = "none",
	[XVM_DEBUG_RAW_ADDRESSES] = "raw-addresses",
	[XVM_DEBUG_NO_ACCESS_PLATFORM] = "no-access-platform",
	[XVM_DEBUG_BYPASS] = "bypass",
};

static int xvm_debug_active;

/**
 * xvm_debug_init() - check the module's parameter debug=
 *
 * Return: 0, or -EINVAL if the parameter names no mode.
 * Context: Module initialisation.
 */
int __init xvm_debug_init(void)
{
	xvm_debug_active = sysfs_match_string(xvm_debug_modes, xvm_debug_name);
	if (xvm_debug_active < 0) {
		pr_err("virtio_msg_xen: debug=%s is none of none, raw-addresses, no-access-platform, bypass\n",
		       xvm_debug_name);
		return xvm_debug_active;
	}
	if (xvm_debug_active != XVM_DEBUG_NONE)
		pr_warn("virtio_msg_xen: debug=%s: devices are driven wrongly, for a test\n",
			xvm_debug_name);
	return 0;
}

/**
 * xvm_debug() - check whether the driver is to misbehave
 * @asked: misbehaviour to look for
 *
 * Return: true if debug= asks for @asked; always false in a build for production.
 * Context: Any context.
 */
bool xvm_debug(enum xvm_debug_mode asked)
{
	return xvm_debug_active == asked;
}
