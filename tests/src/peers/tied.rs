//! Processes that die with this program, however it ends: the kernel sees to it (PR_SET_PDEATHSIG, prctl(2)), by way
//! of `setpriv`, which every Linux has.

use std::process::Command;

/// The same command, tied to this program.
pub(super) fn tied(command: &Command) -> Command {
    let mut tied = Command::new("setpriv");
    tied.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    tied.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(folder) = command.get_current_dir() {
        tied.current_dir(folder);
    }
    tied
}
