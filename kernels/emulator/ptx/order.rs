//! Which accesses to shared memory lie before which, by vector clocks.
//!
//! An agent is whoever touches shared memory: a warp, the products (`wgmma`) of a warpgroup, or the
//! copies (TMA) that report to an mbarrier. Each counts its own time, which grows where it hands
//! over what it has done: at each arrival of a warp, at each product, at each phase of an mbarrier.
//! A clock says up to which time of every other agent a warp has been told; barriers carry clocks
//! from those that arrive to those that wait. An access is a race if its warp has not been told of
//! one before.
//!
//! Stores go through the generic proxy, products and copies through the async one, which sees a
//! store only behind a `fence.proxy.async`: what a clock knows to be fenced is kept beside what it
//! has seen.

use crate::{Error, Result};

/// Bits of a stamp for the time; those above it are the agent's number, and the highest marks a
/// set.
const TIME_BITS: u32 = 22;
const SET: u32 = 1 << 31;

/// An agent with its time, or a set of them; 0 is nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp(u32);

impl Stamp {
    pub(crate) const NOBODY: Self = Self(0);

    /// # Errors
    /// When there are more agents or times than a stamp holds.
    pub(crate) fn new(agent: usize, time: u32) -> Result<Self> {
        if time >> TIME_BITS != 0 || agent >> (31 - TIME_BITS) != 0 {
            return Err(Error("runs for longer than the interpreter can keep apart".into()));
        }
        Ok(Self((agent as u32) << TIME_BITS | time))
    }

    fn agent(self) -> usize {
        (self.0 >> TIME_BITS) as usize
    }

    fn time(self) -> u32 {
        self.0 & ((1 << TIME_BITS) - 1)
    }
}

/// Sets of stamps, one an agent at most.
#[derive(Default)]
pub(crate) struct Sets {
    all: Vec<Vec<Stamp>>,
    /// The last union: of which set and which stamp, and what it is.
    last: (Stamp, Stamp, Stamp),
}

impl Sets {
    fn members<'a>(&'a self, stamp: &'a Stamp) -> &'a [Stamp] {
        match stamp.0 & SET {
            0 if *stamp == Stamp::NOBODY => &[],
            0 => std::slice::from_ref(stamp),
            _ => &self.all[(stamp.0 & !SET) as usize],
        }
    }

    /// Returns a set with one stamp more, in place of an older one of the same agent.
    pub(crate) fn with(&mut self, set: Stamp, one: Stamp) -> Stamp {
        if (self.last.0, self.last.1) != (set, one) {
            let members = self.members(&set).iter().copied();
            let mut members: Vec<Stamp> = members.filter(|m| m.agent() != one.agent()).collect();
            let found = match members.is_empty() {
                true => one,
                false => {
                    members.push(one);
                    self.all.push(members);
                    Stamp(SET | (self.all.len() as u32 - 1))
                }
            };
            self.last = (set, one, found);
        }
        self.last.2
    }
}

/// What a warp has been told, by agent: up to which time, and up to which it is fenced.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock {
    seen: Vec<u32>,
    fenced: Vec<u32>,
}

fn join(to: &mut Vec<u32>, from: &[u32]) {
    if to.len() < from.len() {
        to.resize(from.len(), 0);
    }
    for (to, from) in to.iter_mut().zip(from) {
        *to = (*to).max(*from);
    }
}

fn at(times: &[u32], agent: usize) -> u32 {
    times.get(agent).copied().unwrap_or(0)
}

impl Clock {
    pub(crate) fn join(&mut self, other: &Self) {
        join(&mut self.seen, &other.seen);
        join(&mut self.fenced, &other.fenced);
    }

    /// Takes back whatever the other has not been told, too.
    fn meet(&mut self, other: &Self) {
        for (mine, other) in [(&mut self.seen, &other.seen), (&mut self.fenced, &other.fenced)] {
            for (agent, time) in mine.iter_mut().enumerate() {
                *time = (*time).min(at(other, agent));
            }
        }
    }

    /// Is told of an agent's time.
    pub(crate) fn learn(&mut self, agent: usize, time: u32) {
        if self.seen.len() <= agent {
            self.seen.resize(agent + 1, 0);
        }
        self.seen[agent] = self.seen[agent].max(time);
    }

    pub(crate) fn knows(&self, stamp: Stamp) -> bool {
        at(&self.seen, stamp.agent()) >= stamp.time()
    }
}

/// Who makes an access: what it has been told, its stamp, and whether by the async proxy.
#[derive(Clone, Copy)]
pub(crate) struct By<'a> {
    pub(crate) clock: &'a Clock,
    pub(crate) stamp: Stamp,
    pub(crate) is_async: bool,
    /// Number of warps: the agents that use the generic proxy.
    pub(crate) warps: usize,
}

/// Why an access may not follow another.
pub(crate) enum Conflict {
    /// Nothing orders them.
    Race(Stamp),
    /// Only a `fence.proxy.async` is missing.
    Unfenced(Stamp),
}

impl Conflict {
    pub(crate) fn who(&self, sets: &Sets, warps: usize) -> String {
        let (Self::Race(stamp) | Self::Unfenced(stamp)) = self;
        Order::name(sets, warps, *stamp)
    }
}

impl By<'_> {
    /// Returns what lies before this access without being ordered.
    pub(crate) fn conflict(&self, sets: &Sets, stamp: Stamp) -> Option<Conflict> {
        let unseen = |one: &Stamp| !self.clock.knows(*one);
        let members = sets.members(&stamp);
        if members.iter().any(unseen) {
            return Some(Conflict::Race(stamp));
        }
        let unfenced = |one: &&Stamp| {
            one.agent() < self.warps && at(&self.clock.fenced, one.agent()) < one.time()
        };
        let unfenced = members.iter().find(unfenced).filter(|_| self.is_async);
        unfenced.map(|one| Conflict::Unfenced(*one))
    }

    /// Returns whether all of a set lie before this access.
    pub(crate) fn knows(&self, sets: &Sets, stamp: Stamp) -> bool {
        sets.members(&stamp).iter().all(|one| self.clock.knows(*one))
    }
}

/// The clocks of a cluster's warps.
pub(crate) struct Order {
    pub(crate) sets: Sets,
    clocks: Vec<Clock>,
    /// Warps of a block.
    warps: usize,
    agents: usize,
}

impl Order {
    /// Returns the clocks of a number of blocks with so many warps each.
    pub(crate) fn new(blocks: usize, warps: usize) -> Self {
        let clock = |agent| {
            let mut clock = Clock::default();
            clock.learn(agent, 1);
            clock
        };
        let all = blocks * warps;
        let clocks = (0..all).map(clock).collect();
        Self { sets: Sets::default(), clocks, warps, agents: all + blocks * warps.div_ceil(4) }
    }

    /// Returns the agent that the products of a warpgroup are.
    pub(crate) fn of_group(&self, block: usize, group: usize) -> usize {
        self.clocks.len() + block * self.warps.div_ceil(4) + group
    }

    /// Returns a new agent.
    pub(crate) fn agent(&mut self) -> usize {
        self.agents += 1;
        self.agents - 1
    }

    pub(crate) fn clock(&mut self, warp: usize) -> &mut Clock {
        &mut self.clocks[warp]
    }

    /// Returns the sets, and who a warp is that makes an access.
    ///
    /// # Errors
    /// When the warp's time has run out.
    pub(crate) fn by(&mut self, warp: usize) -> Result<(&mut Sets, By<'_>)> {
        let Self { sets, clocks, .. } = self;
        let (clock, warps) = (&clocks[warp], clocks.len());
        let stamp = Stamp::new(warp, at(&clock.seen, warp))?;
        Ok((sets, By { clock, stamp, is_async: false, warps }))
    }

    /// Returns the same for a copy that a warp starts, or a product.
    pub(crate) fn by_async<'a>(
        &'a mut self,
        clock: &'a Clock,
        stamp: Stamp,
    ) -> (&'a mut Sets, By<'a>) {
        (&mut self.sets, By { clock, stamp, is_async: true, warps: self.clocks.len() })
    }

    /// Returns what all of some warps have been told.
    pub(crate) fn common(&self, warps: std::ops::Range<usize>) -> Clock {
        let mut clocks = self.clocks[warps].iter();
        let mut common = clocks.next().cloned().unwrap_or_default();
        clocks.for_each(|clock| common.meet(clock));
        common
    }

    /// Returns whether one of a block's warps has been told.
    pub(crate) fn is_known_to(&self, block: usize, stamp: Stamp) -> bool {
        let clocks = &self.clocks[block * self.warps..(block + 1) * self.warps];
        clocks.iter().any(|clock| clock.knows(stamp))
    }

    /// A warp hands over what it has done until now.
    pub(crate) fn release(&mut self, warp: usize, to: &mut Clock) {
        to.join(&self.clocks[warp]);
        self.clocks[warp].seen[warp] += 1;
    }

    /// A warp fences what it has done and been told until now.
    pub(crate) fn fence(&mut self, warp: usize) {
        let Clock { seen, fenced } = &mut self.clocks[warp];
        join(fenced, seen);
        seen[warp] += 1;
    }

    /// Names who a stamp is of.
    pub(crate) fn name(sets: &Sets, warps: usize, stamp: Stamp) -> String {
        match sets.members(&stamp) {
            [one] if one.agent() < warps => format!("warp {} has", one.agent()),
            many if many.iter().all(|one| one.agent() < warps) => "several warps have".into(),
            _ => "the async proxy (TMA or wgmma) has".into(),
        }
    }
}
