//! Proves the handover: both tables of `migrate::handover`, with journals, attempts, crashes and an operator, over a network
//! that loses, delays and repeats, are walked through exhaustively within the budgets of [`Handover`].
//!
//! The model has what the tables leave to the sides that use them: when a message is sent, what a journal keeps and what a
//! connection does. The decisions are the engine's own: `Source::on` and `Destination::on`.
//!
//! What is proven of every state that can be reached:
//! - never two runners;
//! - a guest that nobody runs is on a side that says so, or its host died while it had it;
//! - no verdict is given that is not true (`not-running` of a guest that ran);
//! - once both processes live and the network is whole, they find out by themselves, or are where an operator is told.

mod arriving;
mod leaving;
mod truth;
mod world;

use stateright::{Checker, Model, Property};
use world::{Action, Budget, Duty, World};

/// How much may go wrong in one run.
#[derive(Debug, Clone, Copy)]
struct Handover(Budget);

impl Model for Handover {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.0)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        actions.extend(world.actions());
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        world.after(action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two runners", |_, world: &World| world.runners() <= 1),
            Property::always("a guest nobody runs is accounted for", |_, world: &World| {
                world.is_accounted_for()
            }),
            Property::always("given back means that it never ran there", |_, world: &World| {
                world.gave_back_truly()
            }),
            Property::always("moved means that it ran there", |_, world: &World| world.moved_truly()),
            Property::always("heals by itself", |_, world: &World| world.heals()),
            Property::sometimes("moved", |_, world: &World| world.has_moved()),
            Property::sometimes("kept after doubt", |_, world: &World| world.was_given_back()),
            Property::sometimes("unknown", |_, world: &World| world.is_unknown()),
            Property::sometimes("saved by the destination's operator", |_, world: &World| {
                world.was_forced_there()
            }),
            Property::sometimes("saved by the source's operator", |_, world: &World| world.was_forced_here()),
        ]
    }
}

const TWO_ATTEMPTS: Budget =
    Budget { attempts: 2, calls: 2, crashes: 1, power: false, forces: 1, repeats: 0, without: None };
const CRASHES: Budget =
    Budget { attempts: 1, calls: 2, crashes: 2, power: true, forces: 1, repeats: 0, without: None };
const REPEATS: Budget =
    Budget { attempts: 1, calls: 3, crashes: 0, power: false, forces: 1, repeats: 1, without: None };

fn check(budget: Budget, at_least: usize) {
    let checker = Handover(budget).checker().threads(2).spawn_bfs().join();
    let (all, different) = (checker.state_count(), checker.unique_state_count());
    println!("{budget:?}: {all} states, {different} of them different, depth {}", checker.max_depth());
    checker.assert_properties();
    assert!(different >= at_least, "only {different} states: is an action missing?");
}

#[test]
fn every_crash_and_loss_of_two_attempts() {
    check(TWO_ATTEMPTS, 10_000);
}

#[test]
fn every_crash_of_both_sides_and_power_failures() {
    check(CRASHES, 10_000);
}

#[test]
fn connections_that_come_late_and_again() {
    check(REPEATS, 10_000);
}

/// Without any one of these the handover is wrong, and the check says what of it.
#[test]
fn the_check_notices_whatever_is_left_undone() {
    let wrong = [
        (REPEATS, Duty::Lapse, "never two runners"),
        (CRASHES, Duty::BootId, "given back means that it never ran there"),
        (CRASHES, Duty::WriteAhead, "given back means that it never ran there"),
        (TWO_ATTEMPTS, Duty::TellKept, "heals by itself"),
    ];
    for (budget, duty, property) in wrong {
        let handover = Handover(Budget { without: Some(duty), ..budget });
        let found = handover.checker().threads(2).spawn_bfs().join();
        assert!(found.discovery(property).is_some(), "without {duty:?} it is not noticed: {property}");
    }
}
