//! New circuits, for whom a person wishes them.

use wire::VmName;

use super::{Agent, AgentError};
use crate::vms::VmError;

impl Agent {
    /// Has new streams of a VM, or of all VMs, take new circuits; those that are open go on. False when the router is not
    /// there: it obeys when it is.
    ///
    /// # Errors
    /// When there is no such VM.
    pub async fn new_circuits(&self, vm: Option<&VmName>) -> Result<bool, AgentError> {
        let vms: Vec<VmName> =
            self.table().all().keys().filter(|name| vm.is_none_or(|vm| vm == *name)).cloned().collect();
        match vm {
            Some(unknown) if vms.is_empty() => Err(VmError::Unknown(unknown.clone()).into()),
            _ => Ok(self.control.renew_circuits(&vms, false).await),
        }
    }
}
