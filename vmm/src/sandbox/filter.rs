//! From the lists to programs for the kernel.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::lists::{Bits, Call, Only};
use super::{Seccomp, ThreadKind};

/// What a thread of one kind may call, as the kernel takes it.
#[derive(Debug)]
pub(super) struct Filter(Vec<BpfProgram>);

impl Filter {
    /// Of one kind of thread.
    ///
    /// # Panics
    /// When a list is a contradiction, which its test would have found.
    pub(super) fn of(kind: ThreadKind, seccomp: Seccomp) -> Self {
        let otherwise = if seccomp == Seccomp::Log { SeccompAction::Log } else { SeccompAction::Trap };
        // The strictest answer of all programs counts, and "trap" is stricter than an error: so what is refused with an
        // error is allowed by the list. The list comes last: it need not allow that another program comes after it.
        let refused = kind.refused();
        let mut errors: Vec<_> = refused.iter().map(|refused| refused.error).collect();
        errors.sort_unstable();
        errors.dedup();
        let mut programs: Vec<_> = errors
            .into_iter()
            .map(|error| {
                let these = refused.iter().filter(|refused| refused.error == error);
                let these = rules(these.map(|refused| refused.call));
                program(these, SeccompAction::Allow, SeccompAction::Errno(error.unsigned_abs()))
            })
            .collect();
        let all = kind.calls().chain(refused.iter().map(|refused| refused.call));
        programs.push(program(rules(all), otherwise, SeccompAction::Allow));
        Self(programs)
    }

    /// Makes it the calling thread's, besides those that it has.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn install(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|program| seccompiler::apply_filter(program).map_err(io::Error::other))
    }

    /// Instructions in all.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// A call in several lists may be made as any of them says.
fn rules(calls: impl Iterator<Item = Call>) -> Rules {
    let mut rules = Rules::new();
    let mut always = Vec::new();
    for call in calls {
        let known = rules.entry(call.number).or_default();
        match allowed(call.only) {
            Some(allowed) => known.extend(allowed),
            None => always.push(call.number),
        }
    }
    // No rule at all says "whatever its arguments".
    always.into_iter().for_each(|number| drop(rules.insert(number, Vec::new())));
    rules
}

/// Arguments that are allowed, one rule a choice; `None`: all are.
fn allowed(only: Only) -> Option<Vec<SeccompRule>> {
    let choices = match only {
        Only::Any => return None,
        Only::OneOf(argument, values) => {
            values.iter().map(|value| vec![Bits(argument, u32::MAX, *value)]).collect()
        }
        Only::Where(choices) => choices.iter().map(|choice| choice.to_vec()).collect(),
        Only::OwnProcess(argument) => vec![vec![Bits(argument, u32::MAX, std::process::id())]],
    };
    let rule = |choice: Vec<Bits>| {
        let conditions = choice.into_iter().map(|Bits(argument, mask, value)| {
            let masked = SeccompCmpOp::MaskedEq(mask.into());
            let masked = if mask == u32::MAX { SeccompCmpOp::Eq } else { masked };
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, masked, value.into())
        });
        conditions.collect::<Result<_, _>>().and_then(SeccompRule::new).expect("the lists make rules")
    };
    Some(choices.into_iter().map(rule).collect::<Vec<_>>())
}

fn program(rules: Rules, otherwise: SeccompAction, matching: SeccompAction) -> BpfProgram {
    let filter = SeccompFilter::new(rules, otherwise, matching, TargetArch::x86_64);
    filter.and_then(BpfProgram::try_from).expect("the lists make a program")
}
