//! Tests of the whole daemon against the module's own driver core, on the simulated hypervisor.
//!
//! [`host`] simulates the toolstack and runs the server; [`driver`] is a guest: the `guest_shim`
//! core over a split ring that can also write invalid data. A test ends with
//! [`host::Host::finish`], which fails it if anything is left behind.

mod allocations;
mod bare_device;
mod block;
mod budgets;
mod confinement;
mod console;
pub(crate) mod disk_options;
mod disk_sharing;
mod driver;
mod entropy;
mod errors;
mod events;
mod fake_network;
mod faults;
mod flaky_store;
pub(crate) mod gate;
mod handle_faults;
mod host;
mod hot_plug;
mod hung_device;
mod layers;
mod lifecycle;
mod limits;
mod messages;
mod network;
mod network_options;
pub(crate) mod one_ring;
mod platforms;
mod pool;
mod ports;
mod probes;
mod processes;
pub(crate) mod qcow2;
mod qcow2_damage;
mod queue_reset;
mod queue_threads;
mod reload;
mod ring;
mod rings;
mod scale;
mod shortage;
mod slow_device;
mod source_files;
mod store_failures;
mod take_over;
mod vsock;
