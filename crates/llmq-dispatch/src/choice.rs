//! Which of several upstreams with room takes a call: the one where its prompt is at home, so
//! that the provider's cache is found there, else the emptiest.

use llmq_core::Now;

use crate::admit::Way;
use crate::dispatcher::Dispatcher;
use crate::ids::{TicketId, UpstreamId};
use crate::upstream::Upstream;

impl Dispatcher {
    /// Lower is better: the fullest of an upstream's limits, over the route's weight. Those
    /// that have failed this call come last.
    pub(crate) fn score(&mut self, ticket: TicketId, way: Way, now: Now) -> f64 {
        if self.queues[way.served_by.index()].setup.routes.len() == 1 {
            return 0.0;
        }
        let avoid = self.has_failed_at(ticket, way.upstream);
        let busy = self.busy(way.upstream, now);
        let weight = if way.weight > 0.0 { way.weight } else { 1e-6 };
        (busy + 1e-9) / weight + if avoid { 1e9 } else { 0.0 }
    }

    /// How full an upstream is: the share in use of its fullest limit.
    pub(crate) fn busy(&mut self, upstream: UpstreamId, now: Now) -> f64 {
        let Upstream {
            limits, in_flight, ..
        } = &self.upstreams[upstream.index()];
        let mut fullest = 0.0_f64;
        for id in limits {
            fullest = fullest.max(self.limits[id.index()].limit.in_use(now.mono));
        }
        // Without limits, calls in flight tell upstreams apart.
        #[expect(clippy::cast_precision_loss, reason = "a count of calls in flight")]
        let busy = fullest + *in_flight as f64 * 1e-6;
        busy
    }
}

/// Above this share of its fullest limit, an upstream keeps no call that another could take.
const FULL: f64 = 0.75;

/// The two upstreams a prompt is at home at, of those looked at.
///
/// Each prompt orders the upstreams in its own way (rendezvous hashing, Thaler and Ravishankar
/// 1998; weights as Schindelhauer and Schomaker 2005 have them), so that prompts spread by weight
/// and few move when an upstream comes or goes.
#[derive(Debug)]
pub(crate) struct Homes<T> {
    prompt: u64,
    first: Option<Home<T>>,
    second: Option<Home<T>>,
}

#[derive(Debug)]
struct Home<T> {
    distance: f64,
    /// How full it is, and the way there; none: it has no room.
    open: Option<(f64, T)>,
}

impl<T> Homes<T> {
    pub(crate) fn of(prompt: u64) -> Self {
        Self {
            prompt,
            first: None,
            second: None,
        }
    }

    /// Looks at an upstream; `open` says how full it is and the way there, if it has room.
    pub(crate) fn look(&mut self, upstream: UpstreamId, weight: f64, open: Option<(f64, T)>) {
        let distance = distance(self.prompt, upstream, weight);
        let home = Home { distance, open };
        let nearer = |than: &Option<Home<T>>| {
            let is_nearer = |than: &Home<T>| distance < than.distance;
            than.as_ref().is_none_or(is_nearer)
        };
        if nearer(&self.first) {
            self.second = self.first.replace(home);
        } else if nearer(&self.second) {
            self.second = Some(home);
        }
    }

    /// The way to the nearer of the two that is not nearly full.
    pub(crate) fn choose(self) -> Option<T> {
        let homes = [self.first, self.second].into_iter().flatten();
        let mut open = homes.filter_map(|home| home.open);
        open.find(|(full, _)| *full < FULL).map(|(_, way)| way)
    }
}

/// How far an upstream is from a prompt: exponentially distributed, the shorter the heavier.
fn distance(prompt: u64, upstream: UpstreamId, weight: f64) -> f64 {
    let index = u64::try_from(upstream.index()).unwrap_or(0) + 1;
    let mixed = mix(prompt ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    #[expect(
        clippy::cast_precision_loss,
        reason = "53 bits, as many as a double has"
    )]
    let share = ((mixed >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -share.ln() / weight.max(1e-12)
}

/// The finalizer of splitmix64 (Steele, Lea and Flood 2014).
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The upstream of `fullness.len()` that a prompt is sent to.
    fn home(prompt: u64, weights: &[f64], fullness: &[Option<f64>]) -> Option<usize> {
        let mut homes = Homes::of(prompt);
        for (index, (weight, full)) in weights.iter().zip(fullness).enumerate() {
            let open = full.map(|full| (full, index));
            homes.look(UpstreamId::at(index), *weight, open);
        }
        homes.choose()
    }

    const EVEN: [f64; 3] = [1.0; 3];
    const IDLE: [Option<f64>; 3] = [Some(0.0); 3];

    #[test]
    fn a_prompt_stays_while_its_home_has_room_and_has_one_other() {
        for prompt in 1..200 {
            let first = home(prompt, &EVEN, &IDLE).unwrap();
            let mut fullness = IDLE;
            fullness[first] = Some(0.7);
            assert_eq!(home(prompt, &EVEN, &fullness), Some(first));
            fullness[first] = Some(0.8);
            let second = home(prompt, &EVEN, &fullness).unwrap();
            assert_ne!(second, first);
            fullness[first] = None;
            assert_eq!(home(prompt, &EVEN, &fullness), Some(second));
            fullness[second] = Some(0.9);
            assert_eq!(
                home(prompt, &EVEN, &fullness),
                None,
                "the emptiest is for others to find"
            );
        }
    }

    #[test]
    fn prompts_spread_by_weight() {
        let mut counts = [0_u32; 3];
        for prompt in 0..40_000 {
            counts[home(mix(prompt), &[2.0, 1.0, 1.0], &IDLE).unwrap()] += 1;
        }
        let near = |count: u32, share: f64| (f64::from(count) / 40_000.0 - share).abs() < 0.01;
        assert!(near(counts[0], 0.5) && near(counts[1], 0.25), "{counts:?}");
    }

    #[test]
    fn an_upstream_that_goes_moves_only_its_own_prompts() {
        for prompt in (0..1_000).map(mix) {
            let before = home(prompt, &EVEN, &IDLE).unwrap();
            let mut homes = Homes::of(prompt);
            for index in [0, 1] {
                homes.look(UpstreamId::at(index), 1.0, Some((0.0, index)));
            }
            let after = homes.choose().unwrap();
            assert!(before == 2 || before == after);
        }
    }
}
